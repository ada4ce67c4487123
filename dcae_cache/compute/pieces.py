"""Work over a batch in as few pieces as the device's memory allows. Knows nothing of what the work is."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from .memory import is_out_of_memory, release_cached

T = TypeVar("T")


class Pieces:
    """Cuts batches for one device, and remembers for each kind of item how many fit in its memory at once.

    ``sizes``: of a kind, for so many items that are left and at most so many that fit, how many the next piece is of.
    It may be more than are left, where few different sizes are to occur. ``halved`` hears of each kind and the number
    that it goes on with. Threads may share one of these, as they share the device's memory.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        sizes: Callable[[Hashable, int, int | None], int] = lambda kind, wanted, most: wanted,
        halved: Callable[[Hashable, int], None] = lambda kind, count: None,
    ) -> None:
        self._device, self._sizes, self._halved = device, sizes, halved
        self._most: dict[Hashable, int] = {}

    def run(
        self, total: int, kind: Hashable, work: Callable[[slice, int], T], misfit: Callable[[slice, str], T]
    ) -> list[T]:
        """``work(rows, size)`` for slices that make up ``total`` items of a kind, in order; their results.

        Where memory runs out half as many go at once; pieces that are done stay done. ``misfit(rows, reason)`` stands
        in where a single item does not fit, or raises. Other errors pass.
        """
        results: list[T] = []
        done = 0
        while done < total:
            size = self._size(kind, total - done)
            rows = slice(done, min(done + size, total))
            try:
                results.append(work(rows, size))
                done = rows.stop
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())
            # Out here nothing refers to the error any more, nor it to the tensors of the work that failed.
            release_cached(self._device)
            if size > 1:
                self._most[kind] = size // 2
                self._halved(kind, size // 2)
                continue
            results.append(misfit(rows, reason))
            done = rows.stop
        return results

    def _size(self, kind: Hashable, wanted: int) -> int:
        most = self._most.get(kind)
        return self._sizes(kind, wanted if most is None else min(wanted, most), most)


def few_sizes(wanted: int, most: int | None) -> int:
    """The smallest of 1, 2, 4, ... that is at least ``wanted``, but ``most`` where that is less.

    A library that plans its work for each size makes a handful of plans then, and full batches are not padded.
    """
    power = 1 << (wanted - 1).bit_length()
    return power if most is None else min(power, most)
