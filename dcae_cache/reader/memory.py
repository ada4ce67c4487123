"""Blocks of this process's memory, wherever they lie, copied by one call. Knows nothing of files or tensors."""

from __future__ import annotations

from math import gcd
from threading import Lock

import numpy as np
from numpy.typing import NDArray

_LARGEST = 2**14  # numpy counts the bytes of all blocks of a span in 63 bits, and addresses have up to 47


class _Span:
    """Memory as an array of overlapping blocks, one from each byte on, for numpy to look at."""

    def __init__(self, first: int, last: int, size: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (first, True),  # not to be written to
            "shape": (last - first + 1,),
            "typestr": f"|V{size}",
            "strides": (1,),
        }


class Blocks:
    """Copies blocks of ``size`` bytes out of the memory that it was told of. Several threads may use it.

    One look-up in one array, where a loop over the rows of many mapped files costs a microsecond a row in Python. What
    lies between the pieces of memory is part of that array, and never touched.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._piece = size if size <= _LARGEST else gcd(size, _LARGEST)
        self._within = np.arange(0, size, self._piece)
        self._adding = Lock()
        self._span: tuple[int, NDArray[np.void]] = 0, np.empty(0, f"V{self._piece}")  # its first address, and the span

    def add(self, start: int, count: int) -> None:
        """There are so many blocks from that address on, one after another."""
        last = start + count * self._size - self._piece
        with self._adding:
            first, span = self._span
            if len(span):
                start, last = min(start, first), max(last, first + len(span) - 1)
            if (start, last) != (first, first + len(span) - 1):
                self._span = start, np.asarray(_Span(start, last, self._piece))

    def copy(self, addresses: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A copy [N, size] of the blocks that begin at these addresses. Raises IndexError outside of what was added.

        The caller answers for it that each lies in memory that was added and is still there.
        """
        first, span = self._span
        places = addresses - first
        if len(self._within) > 1:
            places = (places[:, None] + self._within).ravel()
        if places.view(np.uint64).max() >= len(span):  # numpy would count negative ones from the end
            raise IndexError("a block outside of the memory that was added")
        return span[places].view(np.uint8).reshape(len(addresses), self._size)
