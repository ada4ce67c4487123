"""A tree of files at a URL, of a store that can list its folders. What a listing tells of files (size, version) is
kept, 24 bytes each, so that none is asked about again.

Knows nothing of images or captions.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from typing import BinaryIO

import numpy as np

from ..errors import MissingFileError, SampleSkipped, SourceError
from ..ledger import HIDDEN
from ..urls import without_secrets
from .base import SourceOptions, too_large
from .store_folder import StoredItem, StoreFolder
from .trees import Folder

NO_NAME = "no name"  # a kind of the ledger: a name of a store's that ends with, or doubles, a slash
MAX_METADATA_BYTES = 2**30  # of one file that says something of many images
_MOST_DEEP = 100  # folders in each other: a link that leads to where it lies would go on for ever
_AT_ONCE = 16  # files whose first bytes are asked for


class RemoteTree:
    """See ``Tree``. Reading tries again where the store doesn't answer; what stays out of reach is skipped."""

    def __init__(self, url: str, options: SourceOptions) -> None:
        self.uri = self.shown = without_secrets(url.rstrip("/"))
        self._start = f"{url.rstrip('/')}/"
        self._folder = StoreFolder(url.rstrip("/"))
        self._timeout = options.url_timeout
        self._root: list[StoredItem] | None = None
        self.forget()

    def local_path(self, name: str) -> str | None:
        return None

    def forget(self) -> None:
        self._root = None
        self._here: dict[str, StoredItem] = {}  # the files of the folder that the walk is at
        self._prefixes: set[str] = set()
        self._known = _Stamps()
        self._is_whole = False  # whether a walk has come to its end

    def walk(self, *, keep_root: bool = False) -> Iterator[Folder]:
        """``keep_root``: the next walk need not list the root again, which may hold millions of files."""
        root = self._root
        self.forget()
        pending = [""]
        while pending:
            prefix = pending.pop()
            if prefix.count("/") > _MOST_DEEP:
                raise SourceError(
                    f"The folders of {self.uri} lie more than {_MOST_DEEP} deep in each other: {prefix[:200]}. "
                    "Give a folder further down."
                )
            items = root if root is not None and not prefix else self._list(prefix)
            root, self._root = None, items if keep_root and not prefix else self._root
            folder, subfolders = self._noticed(prefix, items)
            del items
            yield folder
            pending.extend(f"{prefix}{name}/" for name in reversed(subfolders))
        self._is_whole = True

    def _list(self, prefix: str) -> list[StoredItem]:
        return sorted(self._folder.list(prefix.rstrip("/")))

    def _noticed(self, prefix: str, items: list[StoredItem]) -> tuple[Folder, list[str]]:
        """A folder as it is walked, and the names of those in it."""
        left_out: dict[str, int] = {}
        self._here, hidden_folders, subfolders = {}, [], []
        for item in items:
            if not item.name or "/" in item.name:
                left_out[NO_NAME] = left_out.get(NO_NAME, 0) + 1
            elif item.name.startswith("."):
                if item.is_folder:
                    hidden_folders.append(item.name)
                else:
                    left_out[HIDDEN] = left_out.get(HIDDEN, 0) + 1
            elif item.is_folder:
                subfolders.append(item.name)
            else:
                self._here[prefix + item.name] = item
                self._known.add(prefix + item.name, item)
        self._prefixes.add(prefix)
        return Folder(prefix, [name[len(prefix) :] for name in self._here], left_out, hidden_folders), subfolders

    def count_files(self, folder: str) -> int:
        count, pending = 0, [folder]
        while pending:
            name = pending.pop()
            for item in self._folder.list(name):
                if item.is_folder and item.name and name.count("/") < _MOST_DEEP:
                    pending.append(f"{name}/{item.name}")
                else:
                    count += 1
        return count

    def stat(self, name: str) -> tuple[int, int] | None:
        """Of what was listed, without asking again; asks about what was not."""
        item = self._here.get(name)
        if item is not None:
            return item.num_bytes, item.version
        found = self._known.find(name)
        prefix = name[: name.rfind("/") + 1]
        if found is not None or self._is_whole or prefix in self._prefixes:
            return found
        try:
            return self._folder.stat(name)
        except MissingFileError:
            return None

    def stats(self, prefix: str, names: Iterable[str]) -> Iterator[tuple[int, int] | None]:
        return (self.stat(prefix + name) for name in names)

    def heads(self, names: Iterable[str], count: int) -> Iterator[bytes]:
        """A request each, several at once. Raises SourceError where one stays out of reach: leaving it out would look
        as if it were no image."""
        left = iter(names)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            while some := list(islice(left, 4 * _AT_ONCE)):
                yield from threads.map(lambda name: self._head(name, count), some)

    def _head(self, name: str, count: int) -> bytes:
        item = self._here.get(name)
        if item is not None and not item.num_bytes:
            return b""
        try:
            return self._folder.read(name, count)
        except MissingFileError:  # gone since it was listed
            return b""

    def open(self, name: str, max_bytes: int, listed: int) -> BinaryIO:
        if listed > max_bytes:
            raise too_large(name, listed, max_bytes)
        start = time.monotonic()
        try:
            data = self._folder.read(name, max_bytes + 1)
        except MissingFileError as error:
            raise SampleSkipped("missing", f"there is no file {self._start}{name} any more") from error
        except SourceError as error:
            late = time.monotonic() - start > self._timeout
            raise SampleSkipped("timed_out" if late else "unreadable", str(error)) from error
        if len(data) > max_bytes:
            raise too_large(name, None, max_bytes)
        return BytesIO(data)

    def read_note(self, name: str, max_bytes: int) -> bytes | None:
        try:
            data = self._folder.read(name, max_bytes + 1)
        except MissingFileError:
            return None
        except SourceError as error:
            raise SampleSkipped("bad_caption", str(error)) from error
        if len(data) > max_bytes:
            raise SampleSkipped("too_large", f"{name} has more than {max_bytes} bytes")
        return data

    def open_metadata(self, name: str) -> BinaryIO:
        data = self._folder.read(name, MAX_METADATA_BYTES + 1)
        if len(data) > MAX_METADATA_BYTES:
            raise SourceError(
                f"{self.uri}/{name} has more than {MAX_METADATA_BYTES:,} bytes. Cut it into several, a folder each."
            )
        return BytesIO(data)

    def below(self, place: str) -> str | None:
        return place.removeprefix(self._start) if place.startswith(self._start) else None


class _Stamps:
    """(bytes, version) of many files, found again by a 64-bit hash of the name."""

    def __init__(self) -> None:
        self._columns = array("q"), array("q"), array("q")
        self._order: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None

    def add(self, name: str, item: StoredItem) -> None:
        self._order = None
        for column, value in zip(self._columns, (hash(name), item.num_bytes, item.version), strict=True):
            column.append(value)

    def find(self, name: str) -> tuple[int, int] | None:
        hashes, sizes, versions = self._columns
        if not hashes:
            return None
        # Copies, because an array that numpy looks into can't grow.
        if self._order is None:
            self._order = np.argsort(np.array(hashes, np.int64), kind="stable")
            self._sorted = np.array(hashes, np.int64)[self._order]
        place = int(np.searchsorted(self._sorted, hash(name)))
        if place == len(self._sorted) or self._sorted[place] != hash(name):
            return None
        number = int(self._order[place])
        return sizes[number], versions[number]
