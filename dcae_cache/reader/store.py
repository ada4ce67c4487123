"""Where a cache's files come from. Readers ask here for a path, and know neither folders nor addresses.

A store hands out paths of whole files on this machine; what is far away is fetched first. Knows nothing of rows,
latents or batches.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..asking import answers
from ..cache.index import load_index
from ..cache.parts import shard_path, table_path
from ..cache.rows_file import DERIVED_FOLDER
from ..errors import CacheError, one_line
from ..urls import is_url
from .stream import RemoteStore, StreamOptions

_MAX_MAPPED = 16384  # a process may hold 65,530 memory maps in all, see vm.max_map_count


class PartStore(Protocol):
    """The files of one cache. Must survive pickling: loader processes get a copy."""

    @property
    def root(self) -> str:
        """The cache as its user named it, for messages."""
        ...

    @property
    def far_away(self) -> bool:
        """Whether files have to be fetched, so that ``prefetch`` does something."""
        ...

    @property
    def max_mapped(self) -> int:
        """How many shards a reader may keep mapped at a time: a mapped file takes its space on the disk even when it
        was deleted meanwhile."""
        ...

    def index(self) -> dict[str, Any]:
        """The cache's index, checked. Raises CacheError where there is none."""
        ...

    def shard(self, part: str) -> Path:
        """The file of a part's latents, whole. It may be deleted once it is mapped. Raises CacheError."""
        ...

    def table(self, part: str) -> Path:
        """The file of a part's rows, whole. It may be deleted once it is read. Raises CacheError."""
        ...

    def prefetch(self, parts: Iterable[str]) -> None:
        """Told which parts' latents come next, nearest first; what is far away is fetched in the background."""
        ...

    def stamp(self, index: dict[str, Any]) -> str:
        """Hexadecimal; another one as soon as a table may have changed since a derived file was made."""
        ...

    def derived(self) -> Path:
        """A folder on this machine that is there and where files made from this cache may be kept."""
        ...


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A cache in a folder."""

    folder: Path
    max_mapped: int = _MAX_MAPPED
    far_away: bool = False

    @property
    def root(self) -> str:
        return str(self.folder)

    def index(self) -> dict[str, Any]:
        return load_index(self.folder)

    def shard(self, part: str) -> Path:
        return shard_path(self.folder, part)

    def table(self, part: str) -> Path:
        return table_path(self.folder, part)

    def prefetch(self, parts: Iterable[str]) -> None:
        """Nothing: the system reads ahead itself."""

    def stamp(self, index: dict[str, Any]) -> str:
        """Of the index's checksum, and of every table's size and time: captions may be edited without the index."""
        digest = hashlib.sha256(index["checksum"].encode())
        paths = [self.table(part["name"]) for part in index["parts"]]
        for line in answers(_size_and_time, paths):
            digest.update(line)
        return digest.hexdigest()

    def derived(self) -> Path:
        """Inside the cache; where that can't be written to, a folder of this user's among the temporary files."""
        folder = self.folder / DERIVED_FOLDER
        try:
            folder.mkdir(exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
        except OSError:
            pass
        return temporary_folder(str(self.folder.resolve()))


def open_store(cache: str | Path, stream: StreamOptions | None = None) -> PartStore:
    """The store of a cache in a folder or, for ``scheme://...``, of one far away. ``stream`` says how that is read."""
    name = str(cache)
    if is_url(name) and not name.startswith("file://"):
        return RemoteStore(name, stream or StreamOptions())
    return LocalStore(Path(name.removeprefix("file://")))


def temporary_folder(name: str) -> Path:
    """A folder for files derived from the cache of that name, which only this user can write to. Raises CacheError."""
    home = Path(tempfile.gettempdir()) / f"dcae-cache-{os.getuid()}"
    folder = home / hashlib.sha256(name.encode()).hexdigest()[:16]
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != os.getuid() or home.is_symlink():
            raise CacheError(f"{home} belongs to somebody else. Remove it, or set TMPDIR to a folder of your own.")
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise CacheError(f"No place for files made from {name}: {folder}: {one_line(error)}. Set TMPDIR.") from error
    return folder


def _size_and_time(path: Path) -> bytes:
    try:
        found = path.stat()
    except OSError:
        return b"missing\n"  # named when it is read
    return b"%d %d\n" % (found.st_size, found.st_mtime_ns)
