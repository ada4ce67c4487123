"""What the processes of a run tell each other, through torch.distributed's key-value store.

The leader publishes an assignment; every process takes the next part from a common counter, so that a fast one simply
takes more. Nobody ever waits for another at a part: a process that is gone leaves its parts undone and nothing else.
Knows nothing of devices, sources or files.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from torch.distributed import DistError, Store

from ..errors import LeaderError, one_line
from .progress import Counter, Tally

BEAT_SECONDS = 1.0
_CHUNK = 2**20  # bytes of a value; the store refuses values beyond a few MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What there is to do: ``parts`` by number, to be taken in this order; the rest as the leader's Run has it."""

    recipe: dict[str, Any]
    parts: list[int]
    gone: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class WorkerStatus:
    """How far a process is. ``beat`` grows while it lives; ``error`` is why it stopped before the work was done."""

    tally: Tally = field(default_factory=Tally)
    device: str | None = None
    beat: int = 0
    finished: bool = False
    error: str | None = None


class WorkQueue:
    """One run's corner of the store. Every method may raise LeaderError: the store is gone, and with it the leader."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self.rank = store, rank
        self._notes = 0

    def publish(self, assignment: Assignment) -> None:
        """Have the assignment done. Called once, by the leader."""
        data = zlib.compress(json.dumps(asdict(assignment)).encode())
        chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
        for number, chunk in enumerate(chunks):
            self._set(f"assignment/{number}", chunk)
        self._set("assignment", str(len(chunks)))

    def assignment(self) -> Assignment:
        """Wait for the assignment, however long the leader plans. Raises LeaderError if it fails meanwhile."""
        while not self._has("assignment"):
            if self.outcome() is not None:
                raise LeaderError("The leading process failed before there was work.")
            time.sleep(0.1)
        data = b"".join(self._get(f"assignment/{number}") for number in range(int(self._get("assignment"))))
        return Assignment(**json.loads(zlib.decompress(data)))

    def claims(self, assignment: Assignment) -> Iterator[int]:
        """Numbers of parts that are this process's to make, until there are none left."""
        while True:
            place = self._call(lambda: self._store.add("claimed", 1)) - 1
            if place >= len(assignment.parts):
                return
            yield assignment.parts[place]

    def tell_status(self, status: WorkerStatus) -> None:
        """Let the leader know how far this process is."""
        self._set(f"status/{self.rank}", json.dumps(asdict(status)))

    def status_of(self, rank: int) -> WorkerStatus | None:
        """The latest status of a process, None before its first."""
        if not self._has(f"status/{rank}"):
            return None
        values = json.loads(self._get(f"status/{rank}"))
        return WorkerStatus(**(values | {"tally": Tally(**values["tally"])}))

    def note(self, text: str) -> None:
        """Tell the person at the leader's terminal."""
        number = self._call(lambda: self._store.add("notes", 1)) - 1
        self._set(f"note/{number}", f"rank {self.rank}: {text}")

    def new_notes(self) -> list[str]:
        """What was noted since the last call."""
        count = self._call(lambda: self._store.add("notes", 0))
        texts = []
        while self._notes < count and self._has(f"note/{self._notes}"):  # counted first, then written
            texts.append(self._get(f"note/{self._notes}").decode())
            self._notes += 1
        return texts

    def announce(self, outcome: dict[str, Any]) -> None:
        """Tell all that the run is over. Called once, by the leader."""
        self._set("outcome", json.dumps(outcome))

    def outcome(self) -> dict[str, Any] | None:
        """What ``finish`` was told, None before."""
        if not self._has("outcome"):
            return None
        outcome: dict[str, Any] = json.loads(self._get("outcome"))
        return outcome

    def leave(self) -> None:
        """Tell the leader that this process has heard the outcome."""
        self._set(f"left/{self.rank}", "")

    def has_left(self, rank: int) -> bool:
        return self._has(f"left/{rank}")

    def _set(self, key: str, value: str | bytes) -> None:
        self._call(lambda: self._store.set(key, value))  # type: ignore[arg-type] # the stub forgets bytes

    def _has(self, key: str) -> bool:
        return bool(self._call(lambda: self._store.check([key])))

    def _get(self, key: str) -> bytes:
        value: bytes = self._call(lambda: self._store.get(key))
        return value

    def _call(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (DistError, RuntimeError) as error:
            raise LeaderError("The process that leads the run is gone.") from error


class Watch:
    """The latest statuses of other processes, gathered into the leader's Run."""

    def __init__(self, queue: WorkQueue, ranks: Iterable[int]) -> None:
        self._queue, self._ranks = queue, list(ranks)
        self._last = 0.0
        self.statuses: dict[int, WorkerStatus] = {}

    def update(self, counter: Counter, *, at_once: bool = False) -> None:
        """Read the statuses and pass on what was noted, unless that was done within the last second."""
        if not at_once and time.monotonic() - self._last < BEAT_SECONDS:
            return
        self._last = time.monotonic()
        for rank in self._ranks:
            before = self.statuses.get(rank)
            if before is None or not before.finished:
                status = self._queue.status_of(rank)
                if status is not None:
                    self.statuses[rank] = status
        counter.others = Tally.total(status.tally for status in self.statuses.values())
        counter.devices |= {status.device for status in self.statuses.values() if status.device}
        for text in self._queue.new_notes():
            counter.tell_once(text)


class StatusReporter:
    """Reports a process's tally every second, on a thread, for as long as the ``with`` block lasts.

    When the store is gone nobody would collect what this process makes: it is sent SIGTERM, once.
    """

    def __init__(self, queue: WorkQueue, status: WorkerStatus) -> None:
        self._queue, self._status = queue, status
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="status", daemon=True)

    def __enter__(self) -> StatusReporter:
        self._queue.tell_status(self._status)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if isinstance(error, LeaderError):
            return
        self._status.finished = error is None
        if error is not None:
            self._status.error = "was interrupted" if isinstance(error, KeyboardInterrupt) else one_line(error)
        self._queue.tell_status(self._status)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._status.beat += 1
            try:
                self._queue.tell_status(self._status)
            except LeaderError:
                os.kill(os.getpid(), signal.SIGTERM)
                return
