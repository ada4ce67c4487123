"""A file object over anything that can be read from a place. Knows nothing of where the bytes are."""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import Any


class PlacedFile(io.RawIOBase):
    """A file of ``size`` bytes, of which ``read_at`` gives those from a place on."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    @abstractmethod
    def read_at(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to before ``stop``, which lie in the file."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start, stop = self._position, self._size
        if size is not None and size >= 0:
            stop = min(stop, start + size)
        if stop <= start:
            return b""
        data = self.read_at(start, stop)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
