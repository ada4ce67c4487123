"""Many small questions to a file system, one after the other where it answers at once, several at a time where each
answer takes its time, as over a network. Knows nothing of what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")

_AT_ONCE = 16
_CHUNK = 128  # so many go the way of their first one, which may be known without asking anybody
_FAR_SECONDS = 2e-4  # of waiting: a disk of this machine answers in a few microseconds, a network in a millisecond


def answers(ask: Callable[[_Asked], _Answer], items: Iterable[_Asked]) -> Iterator[_Answer]:
    """``ask`` of each, in their order. It may run on several threads; what it raises ends it here."""
    left = iter(items)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ask") as pool:  # no thread before it is used
        while chunk := list(islice(left, _CHUNK)):
            started, worked = time.perf_counter(), time.thread_time()
            first = ask(chunk[0])
            waited = (time.perf_counter() - started) - (time.thread_time() - worked)
            yield first
            yield from (pool.map if waited > _FAR_SECONDS else map)(ask, chunk[1:])
