"""SIGTERM and Ctrl-C as one KeyboardInterrupt that can't get lost.

Libraries written in C drop an exception that a signal raises inside them: pyarrow, where it imports pandas on its own
account, and whatever calls Python from a destructor. The run would go on, and the signal would be spent. Knows
nothing of what is interrupted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable
from types import TracebackType

_AGAIN_SECONDS = 1.0


class Interruption:
    """While the ``with`` block lasts, the first of ``signals`` raises KeyboardInterrupt in the main thread, again and
    again until one is seen there; every later one calls ``then``. Signals that are ignored when it begins stay so.

    An error that leaves the block after that is work cut short: the block raises KeyboardInterrupt in its place.
    Behind the block the signals are still heard, as the process has yet to end, but nothing is raised again.
    Uses SIGALRM. To be entered in the main thread.
    """

    def __init__(self, signals: Iterable[signal.Signals], then: Callable[[], object] = lambda: None) -> None:
        self._told, self._over = False, False
        self._signals = tuple(signals)
        self._then = then
        self._shows_unraised = sys.unraisablehook

    def __enter__(self) -> Interruption:
        signal.signal(signal.SIGALRM, self._again)
        sys.unraisablehook = self._unraised
        for number in self._signals:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = self._shows_unraised
        if self._told and isinstance(error, Exception):
            raise KeyboardInterrupt from error

    def _hear(self, *_: object) -> None:
        if self._told:
            self._then()
            return
        self._told = True
        if not self._over:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _AGAIN_SECONDS)
        raise KeyboardInterrupt

    def _again(self, *_: object) -> None:
        """Where an exception is being handled, the work is being put down already: that isn't disturbed."""
        if sys.exception() is None:
            raise KeyboardInterrupt

    def _unraised(self, unraised: sys.UnraisableHookArgs) -> None:
        """What a destructor could not raise is Python's to print, unless it is our own KeyboardInterrupt."""
        if not (self._told and isinstance(unraised.exc_value, KeyboardInterrupt)):
            self._shows_unraised(unraised)
