"""A stream unpacked from xz in bounded memory: the library's own file object takes what an archive asks for, up to
4 GiB. Knows nothing of tars.
"""

from __future__ import annotations

import io
import lzma
from typing import Any

MAX_MEMORY = 2**28  # bytes; what xz -9 packs takes 65 MiB to unpack
_BLOCK = 2**16


class XzStream(io.RawIOBase):
    """The bytes packed in ``packed``, in order; several streams behind one another, as xz joins them.

    Reading raises lzma.LZMAError for what is broken or takes more than MAX_MEMORY, EOFError for what is cut off.
    """

    def __init__(self, packed: Any) -> None:
        self._packed = packed
        self._begin()

    def _begin(self) -> None:
        self._stream = self._next_stream()
        self._rest = b""  # read, and not unpacked yet
        self._is_between = False  # streams: here the file may end
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._packed.seekable())

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go there by unpacking what lies before; backward, from the start again."""
        if whence == io.SEEK_END:
            while self.read(_BLOCK):
                pass
        target = offset + (0 if whence == io.SEEK_SET else self._position)
        if target < self._position:
            self._packed.seek(0)
            self._begin()
        while self._position < target and self.read(min(_BLOCK, target - self._position)):
            pass
        return self._position

    def readinto(self, buffer: Any) -> int:
        while True:
            data = self._unpack(len(buffer))
            if data is None:
                return 0
            if data:
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)

    def _unpack(self, count: int) -> bytes | None:
        """Some bytes, perhaps none yet; None at the end of the file."""
        if self._stream.eof:
            self._rest = self._stream.unused_data
            self._stream, self._is_between = self._next_stream(), True
        if self._is_between and not self._skip_padding():
            return None
        if not self._rest and self._stream.needs_input:
            self._rest = self._packed.read(_BLOCK)
            if not self._rest:
                raise EOFError("the archive ends before its end marker")
        packed, self._rest = self._rest, b""
        return self._stream.decompress(packed, max_length=count)

    def _skip_padding(self) -> bool:
        """Whether another stream follows: zeros between them are padding."""
        while not (rest := self._rest.lstrip(b"\0")):
            self._rest = self._packed.read(_BLOCK)
            if not self._rest:
                return False
        self._rest, self._is_between = rest, False
        return True

    @staticmethod
    def _next_stream() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)
