"""Files of rows by path or URL, with what tells their versions apart; those of a store are read range by range.

Knows nothing of rows or columns.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ..errors import SourceError
from ..remote import BLOCK_BYTES, file_size_and_version, read_range
from ..text import stamp_of
from ..urls import is_url
from .fetching import matching_files
from .placed import PlacedFile

_AT_ONCE = 4  # requests for one range
_ASKED_AT_ONCE = 16  # files that are asked for their size
READ_AHEAD = _AT_ONCE * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file as it was listed. ``version`` is its time in ns, or a number made of what else a store says of it."""

    place: str  # path or URL, with what is secret in it
    num_bytes: int
    version: int

    @staticmethod
    def local(path: Path) -> DataFile:
        info = path.stat()
        return DataFile(str(path), info.st_size, info.st_mtime_ns)

    @property
    def name(self) -> str:
        return PurePosixPath(self.place.partition("?")[0] if is_url(self.place) else self.place).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def folder(self) -> str:
        """The path or URL of the folder that the file lies in."""
        return folder_of(self.place)

    @property
    def stamp(self) -> int:
        """Changes with the file's name and version."""
        return stamp_of(f"{self.name}:{self.num_bytes}:{self.version}")


def folder_of(place: str) -> str:
    """The path or URL of the folder that a file lies in; a query stays at the end."""
    if not is_url(place):
        return str(Path(place).parent)
    path, mark, query = place.partition("?")
    return f"{path.rpartition('/')[0]}{mark}{query}"


def stored_files(url: str, user_agent: str) -> list[DataFile]:
    """The files that a URL names, with or without a pattern. Raises SourceError where one can't be asked about."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="ask") as pool:
        places = matching_files(url)
        found = pool.map(lambda place: file_size_and_version(place, user_agent), places)
        return [DataFile(place, *told) for place, told in zip(places, found, strict=True)]


class RangedFile(PlacedFile):
    """A file in a store, read from any place in it: a request for each range, several at once for a long one."""

    def __init__(self, file: DataFile, user_agent: str) -> None:
        self._file, self._user_agent = file, user_agent
        size = file.num_bytes if file.num_bytes >= 0 else file_size_and_version(file.place, user_agent)[0]
        if size < 0:
            raise SourceError(
                f"{file.place} can't be read in pieces: its server doesn't say how large it is. Download it first."
            )
        super().__init__(size)

    def read_at(self, start: int, stop: int) -> bytes:
        ends = [*range(start, stop, BLOCK_BYTES), stop]
        if len(ends) == 2:
            return self._range(start, stop)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="range") as pool:
            return b"".join(pool.map(lambda pair: self._range(*pair), pairwise(ends)))

    def _range(self, start: int, stop: int) -> bytes:
        return read_range(self._file.place, start, stop, self._user_agent)


def open_ranged(file: DataFile, user_agent: str) -> BinaryIO:
    """The file, to be read from any place in it."""
    return cast(BinaryIO, RangedFile(file, user_agent))
