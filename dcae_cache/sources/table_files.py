"""The file of a table, opened as often as its rows are read: where it lies, or as a copy of what a URL gives.

A copy has no name, so that nothing of it is left whatever is killed. Knows nothing of rows.
"""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from typing import Any, BinaryIO, Protocol

from ..errors import SourceError, one_line
from ..remote import BLOCK_BYTES, open_file
from ..urls import is_url, without_secrets
from .base import SourceOptions
from .placed import PlacedFile


class TableFile(Protocol):
    """A table's bytes. ``name`` is what messages call it."""

    name: str

    def open(self) -> BinaryIO:
        """The file from its start, to be read from any place in it; on any thread, any number at once."""
        ...


def table_file(place: str, options: SourceOptions) -> TableFile:
    """The table at a path, or a copy of the one at a URL, made now. Raises SourceError where it can't be had, OSError
    where there is no such path."""
    return _Copy(place, options) if is_url(place) else _Local(place)


def suffix_of(place: str) -> str:
    """ ".csv" of a path or URL, in small letters."""
    return os.path.splitext(place.partition("?")[0] if is_url(place) else place)[1].lower()


class _Local:
    def __init__(self, path: str) -> None:
        self.name = path

    def open(self) -> BinaryIO:
        return open(self.name, "rb")


class _Copy:
    def __init__(self, url: str, options: SourceOptions) -> None:
        self.name = without_secrets(url)
        self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._file.close)
        with open_file(url, options.user_agent) as source:
            while block := source.read(BLOCK_BYTES):
                self._keep(block)
        self._keep(b"")

    def open(self) -> BinaryIO:
        return io.BufferedReader(_Reading(self, self._file.fileno()))

    def _keep(self, block: bytes) -> None:
        try:
            self._file.write(block)
            if not block:
                self._file.flush()
        except OSError as error:
            raise SourceError(
                f"Can't keep a copy of {self.name} in {tempfile.gettempdir()}: {one_line(error)}. Free some space, or "
                "set TMPDIR."
            ) from error


class _Reading(PlacedFile):
    """A file that is open already, from its start, whatever others read of it."""

    def __init__(self, owner: object, descriptor: int) -> None:
        super().__init__(os.fstat(descriptor).st_size)
        self._owner, self._descriptor = owner, descriptor

    def read_at(self, start: int, stop: int) -> bytes:
        return os.pread(self._descriptor, stop - start, start)
