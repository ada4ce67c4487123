"""How long a device stood still between pieces of work. Knows nothing of what the work is."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .transfers import Mark


class IdleClock:
    """Adds up the time from the end of one piece of work to the beginning of the next, as the device itself marks it.

    Pieces are added in the order in which the device did them, each when its marks have been reached. Work that runs
    beside other work (a CPU's streams) is told apart by its ``lane``. ``heard`` is told of each.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[object, Mark] = {}
        self.idle_seconds = 0.0
        self.busy_seconds = 0.0
        self.heard: Callable[[Mark, Mark, object], None] = lambda begin, end, lane: None

    def add(self, begin: Mark, end: Mark, lane: object = None) -> None:
        """Count one piece of work."""
        with self._lock:
            self.busy_seconds += max(0.0, end.seconds_since(begin))
            last = self._last.get(lane)
            if last is not None:
                self.idle_seconds += max(0.0, begin.seconds_since(last))
            self._last[lane] = end
        self.heard(begin, end, lane)
