"""Memory that this process and one that it has started both see, without a name: it is gone with the last of them,
whatever ends them. Knows nothing of images.

Read and written like a file, so that the interpreter lock is free while bytes are copied, and no address can fault.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

_KEPT = 2**24  # bytes that stay for later; more goes back when it has been read
_AT_ONCE = 2**30  # bytes that one call copies: Linux takes less than 2 GiB


def is_available() -> bool:
    """Whether this system has such memory."""
    return hasattr(os, "memfd_create")


class SharedBytes:
    """The memory behind a file descriptor. It grows as it is written to."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @staticmethod
    def new() -> SharedBytes:
        """Memory of this process, to be handed to another by its descriptor."""
        return SharedBytes(os.memfd_create("dcae-cache-pixels"))

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of the bytes from ``offset`` on."""
        rest = memoryview(data)
        while rest:
            done = os.pwrite(self.descriptor, rest[:_AT_ONCE], offset)
            rest, offset = rest[done:], offset + done

    def read(self, num_bytes: int, offset: int) -> bytes:
        """So many bytes from ``offset`` on."""
        whole = np.empty(num_bytes, dtype=np.uint8)
        self.read_into(whole, offset)
        return whole.tobytes()

    def read_into(self, array: NDArray[np.uint8], offset: int) -> None:
        """Fill the array, which lies in one piece, with the bytes from ``offset`` on."""
        rest = array.reshape(-1).data
        while rest:
            done = os.preadv(self.descriptor, [rest[:_AT_ONCE]], offset)
            if not done:
                raise EOFError("the other process wrote less than it says")
            rest, offset = rest[done:], offset + done

    def shrink(self) -> None:
        """Give back what a large image took. What is in it is lost."""
        if os.fstat(self.descriptor).st_size > _KEPT:
            os.ftruncate(self.descriptor, 0)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)
