"""Blocks of this process's memory, wherever they lie, copied by one call. Knows nothing of files or tensors."""

from __future__ import annotations

from math import gcd

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


def blocks_at(addresses: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """A copy [N, size] of the ``size`` bytes from each address on.

    One look-up in one array, where a loop over the rows of many mapped files costs a microsecond a row in Python. The
    caller answers for it that all of that is mapped, and stays so during the call; what lies between isn't touched.
    """
    block = size if size <= _LARGEST else gcd(size, _LARGEST)
    places = addresses if block == size else (addresses[:, None] + np.arange(0, size, block)).ravel()
    first = int(places.min())
    span = np.asarray(_Span(first, int(places.max()), block))
    return span[places - first].view(np.uint8).reshape(len(addresses), size)
