"""A generator that runs ahead on a thread of its own. Knows nothing of what it yields."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from typing import Generic, TypeVar

from ..trace import NO_TRACE, Trace

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Runs a generator on a thread of its own, at most ``depth`` items ahead. Iterate it, then close it.

    An exception of the generator is raised to whoever iterates. ``close`` stops the generator at its next item and
    waits for it to clean up. ``trace`` hears how long it stood still because it was far enough ahead.
    """

    def __init__(self, items: Generator[T], depth: int, trace: Trace = NO_TRACE) -> None:
        self._trace = trace
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._queue.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self, items: Generator[T]) -> None:
        end: BaseException | None = None
        try:
            for item in items:
                self._put((item, None))
                if self._stop.is_set():
                    break
        except BaseException as error:  # handed to the thread that iterates
            end = error
        finally:
            items.close()
        self._put((None, end))

    def _put(self, entry: tuple[T | None, BaseException | None]) -> None:
        with self._trace.span("wait for the encoder") if self._queue.full() else nullcontext():
            self._put_when_free(entry)

    def _put_when_free(self, entry: tuple[T | None, BaseException | None]) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
