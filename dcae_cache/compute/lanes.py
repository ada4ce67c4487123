"""Several pieces of torch's work at once on a CPU, each on one core and one after the other elsewhere.

Torch's own threads wait for each other after every operation; pieces that are apart don't, and what they compute does
not depend on how many there are. Knows nothing of what the work is.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch

T = TypeVar("T")


class Lanes:
    """Does work on up to ``count`` threads, called ``name``, where ``device`` is a CPU, else at once on the caller's.

    Leave the ``with`` block to end the threads: what hasn't begun by then is dropped, what has is waited for.
    """

    def __init__(self, device: torch.device, count: int, name: str = "lane") -> None:
        self._before = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        if device.type == "cpu":
            self._pool = ThreadPoolExecutor(count, name, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._before)

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Begin, or do, the work. Its result or its error is the future's; elsewhere than on a CPU errors pass."""
        if self._pool is not None:
            return self._pool.submit(work)
        done: Future[T] = Future()
        done.set_result(work())
        return done
