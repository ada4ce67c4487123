"""What the threads of a process were at, and when: written down only where somebody asks for it.

    trace = Trace()
    trace.name_lane("writer")              # of the calling thread
    with trace.span("part-000000"):
        ...
    trace.to_json("rank 0")                # what https://ui.perfetto.dev opens

Each thread has a lane of its own, where spans lie inside each other and never cross; so has what is no thread, such
as a device. Times are those of ``time.perf_counter``. Knows nothing of what the work is.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count

MAX_SPANS = 1_000_000  # about 200 MB of memory; the rest of a longer run is only counted

Lane = int | str  # a thread by a number of its own (the system gives theirs to others when they end), or a name


class Trace:
    """Collects spans. Any thread may add some."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Lane, float, float]] = []
        self._names: dict[Lane, str] = {}
        self._own = threading.local()
        self._numbers = count(1)
        self._started = time.perf_counter()
        self.num_dropped = 0

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return True

    def name_lane(self, name: str) -> None:
        """Call the lane of the calling thread so; without it, as the thread is called."""
        self._names[self._lane()] = name

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, begin, time.perf_counter())

    def span(self, name: str) -> AbstractContextManager[None]:
        """A span of the calling thread, as long as the ``with`` block takes."""
        return self._timed(name)

    def add(self, name: str, begin: float, end: float, lane: Lane | None = None) -> None:
        """A span in seconds of ``time.perf_counter``, in the calling thread's lane unless another one is given."""
        lane = self._lane() if lane is None else lane
        if len(self._spans) < MAX_SPANS:
            self._spans.append((name, lane, begin, max(begin, end)))
        else:
            self.num_dropped += 1

    def to_json(self, process: str) -> str:
        """All of it in the trace event format of Chrome, which Perfetto reads; ``process`` names this process. Times
        count from the machine's start, so that those of several of its processes fit together."""
        pid = os.getpid()
        spans = sorted(self._spans, key=lambda span: (span[2], -span[3]))
        lanes = {lane: number for number, lane in enumerate(dict.fromkeys(span[1] for span in spans), 1)}
        events: list[dict[str, object]] = [_meta("process_name", pid, 0, process)]
        events += [_meta("thread_name", pid, number, self._name(lane)) for lane, number in lanes.items()]
        for name, lane, begin, end in spans:
            microseconds = {"ts": round(begin * 1e6, 3), "dur": round((end - begin) * 1e6, 3)}
            events.append({"name": name, "ph": "X", "pid": pid, "tid": lanes[lane], **microseconds})
        about = {"spans_dropped": self.num_dropped, "seconds": round(time.perf_counter() - self._started, 3)}
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about})

    def _lane(self) -> int:
        number: int | None = getattr(self._own, "number", None)
        if number is None:
            number = self._own.number = next(self._numbers)
            self._names[number] = threading.current_thread().name
        return number

    def _name(self, lane: Lane) -> str:
        return self._names.get(lane, str(lane))


class NoTrace(Trace):
    """Keeps nothing, and costs next to nothing."""

    _nothing = nullcontext()

    @property
    def is_on(self) -> bool:
        return False

    def name_lane(self, name: str) -> None:
        pass

    def span(self, name: str) -> AbstractContextManager[None]:
        return self._nothing

    def add(self, name: str, begin: float, end: float, lane: Lane | None = None) -> None:
        pass


NO_TRACE = NoTrace()


def _meta(kind: str, pid: int, tid: int, name: str) -> dict[str, object]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
