"""A cache far away, read without a full copy: its index first, then each file when it is asked for, or ahead of that.

What arrives is checked against the index and kept in a folder that all processes of the machine share (mirror.py);
commands that take files as they are, to check them, have cache/brought.py.
Knows nothing of rows, latents or batches, and of addresses only that files have one.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..cache.index import INDEX_NAME, parse_index
from ..cache.parts import PARTS_FOLDER
from ..errors import CacheError, DCAECacheError, SourceError, UsageError
from ..files import make_folder
from ..remote import file_size_and_version, join_url, open_file
from ..urls import without_secrets
from .mirror import Mirror

_BLOCK = 2**20  # bytes written at a time
_TRIES = 2  # of a file that doesn't arrive as its hash says
_MAX_MAPPED = 8192  # as for a folder, where nothing is deleted
_MAX_MAPPED_LIMITED = 8  # each keeps its space on the disk after it was deleted
_TABLES_AHEAD = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How a cache far away is read. None of it changes what is read.

    ``cache_limit``: bytes of its files kept on this machine, None for all that were read; ``folder``: where, by
    default a folder of the cache's name in ~/.cache/dcae-cache (or $XDG_CACHE_HOME/dcae-cache), shared by all
    processes that name the same folder; ``threads``: files fetched ahead at a time.
    """

    cache_limit: int | None = None
    folder: str | Path | None = None
    threads: int = 4

    def __post_init__(self) -> None:
        if self.cache_limit is not None and self.cache_limit < 1:
            raise UsageError(f"`cache_limit` must be at least 1 byte, not {self.cache_limit}.")
        if self.threads < 1:
            raise UsageError(f"`threads` must be at least 1, not {self.threads}.")


@dataclass(frozen=True, slots=True)
class _File:
    """One file of the cache: where it lies there, and what must arrive. ``num_bytes`` None: not known beforehand."""

    part: str
    suffix: str
    sha256: str
    num_bytes: int | None

    @property
    def place(self) -> str:
        return f"{PARTS_FOLDER}/{self.part}.{self.suffix}"

    @property
    def name(self) -> str:
        """On this machine. With the hash in it, a part made again is another file."""
        return f"{self.part}.{self.sha256[:16]}.{self.suffix}"


class RemoteStore:
    """The PartStore of a cache at a URL that fsspec has a driver for (hf, s3, gs, https ...)."""

    def __init__(self, url: str, options: StreamOptions) -> None:
        self._url, self._options = url.rstrip("/") if "?" not in url else url, options
        self.folder = _mirror_folder(self.root, options.folder)
        self._mirror = Mirror(self.folder / PARTS_FOLDER, options.cache_limit)
        self._index: dict[str, Any] | None = None
        self._numbers: dict[str, int] = {}  # of the parts, by name
        self._ahead = _Ahead(options.threads)

    far_away = True

    @property
    def root(self) -> str:
        """The address without passwords and signatures."""
        return without_secrets(self._url)

    @property
    def max_mapped(self) -> int:
        return _MAX_MAPPED if self._options.cache_limit is None else _MAX_MAPPED_LIMITED

    def index(self) -> dict[str, Any]:
        """The cache's index as it was when this store asked first. Raises CacheError where there is none."""
        if self._index is None:
            index = parse_index(self._read(INDEX_NAME), f"{self.root}/{INDEX_NAME}")
            self._refuse_small_limit(index)
            self._numbers = {part["name"]: number for number, part in enumerate(index["parts"])}
            self._index = index
        return self._index

    def shard(self, part: str) -> Path:
        """The file of a part's latents, fetched if it isn't here; it stays until this thread asks for another file.

        Raises CacheError, naming the part, where it can't be had or isn't what the index says.
        """
        return self._local(self._file(part, "safetensors"))

    def table(self, part: str) -> Path:
        """As ``shard``, the file of a part's rows. The tables of the parts behind it are fetched ahead."""
        parts = self.index()["parts"]
        number = self._numbers[part]
        if number % _TABLES_AHEAD == 0:
            coming = [self._file(entry["name"], "parquet") for entry in parts[number : number + 2 * _TABLES_AHEAD]]
            self._ahead.start([file for file in coming if not self._mirror.touch(file.name)], self._fetch)
        return self._local(self._file(part, "parquet"))

    def prefetch(self, parts: Iterable[str]) -> None:
        """Fetch the shards of these parts in the background, in this order, as many as half of the limit holds.

        Returns at once. A failure shows when the part is asked for.
        """
        limit = self._options.cache_limit
        left = float("inf") if limit is None else limit / 2
        wanted = []
        for part in dict.fromkeys(parts):
            file = self._file(part, "safetensors")
            left -= file.num_bytes or 0
            if left < 0:
                break
            if not self._mirror.touch(file.name):
                wanted.append(file)
        self._ahead.start(wanted, self._fetch)

    def stamp(self, index: dict[str, Any]) -> str:
        """Of the index alone: it holds the hash of every table."""
        return hashlib.sha256(index["checksum"].encode()).hexdigest()

    def derived(self) -> Path:
        """A folder beside the fetched files, of this index. It doesn't count towards the limit."""
        folder = self.folder / f"derived-{self.index()['checksum'][:16]}"
        make_folder(folder)
        return folder

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_ahead"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ahead = _Ahead(self._options.threads)

    def _file(self, part: str, suffix: str) -> _File:
        entry = self.index()["parts"][self._numbers[part]]
        if suffix == "parquet":
            return _File(part, suffix, entry["table_sha256"], None)
        return _File(part, suffix, entry["sha256"], entry["num_bytes"])

    def _local(self, file: _File) -> Path:
        while (path := self._mirror.hold(file.name, file.num_bytes)) is None:
            self._fetch(file, hold=True)
        return path

    def _fetch(self, file: _File, *, hold: bool = False) -> None:
        with self._mirror.filling(file.name, hold=hold) as target:
            if target is None:  # another process or thread has brought it
                return
            for _ in range(_TRIES):
                received = self._download(file, target)
                if received == file.sha256:
                    return
            raise CacheError(
                f"{file.part} of {self.root} is damaged: {file.place} should have sha256 {file.sha256[:16]}..., but "
                f"what arrived, twice, has {received[:16]}.... If the cache was made anew meanwhile, open it again; "
                "otherwise check it where it lies with: dcae-cache verify --integrity-only"
            )

    def _download(self, file: _File, target: BinaryIO) -> str:
        """Write the file to ``target``; returns the sha256 of what arrived."""
        url, digest = join_url(self._url, file.place), hashlib.sha256()
        try:
            size = file.num_bytes if file.num_bytes is not None else max(0, file_size_and_version(url)[0])
            self._mirror.make_room(target, size)
            target.seek(0)
            with open_file(url) as remote:
                while block := remote.read(_BLOCK):
                    digest.update(block)
                    target.write(block)
        except SourceError as error:
            raise CacheError(f"{file.part} of {self.root} can't be fetched: {error}") from error
        return digest.hexdigest()

    def _read(self, name: str) -> bytes:
        try:
            with open_file(join_url(self._url, name)) as remote:
                return remote.read()
        except SourceError as error:
            raise CacheError(f"{self.root} can't be opened as a cache: {error}") from error

    def _refuse_small_limit(self, index: dict[str, Any]) -> None:
        limit, largest = self._options.cache_limit, max((part["num_bytes"] for part in index["parts"]), default=0)
        if limit is not None and limit < 2 * largest:
            raise UsageError(
                f"`cache_limit` of {limit} bytes is too small for {self.root}: its largest part has {largest} bytes, "
                f"and two must fit. Give at least {2 * largest}."
            )


class _Ahead:
    """Files fetched in the background, those named last first of all. A forked process starts with none."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._waiting: deque[_File] = deque()
        self._running: set[str] = set()
        self._threads = 0

    def start(self, files: Iterable[_File], fetch: Callable[[_File], None]) -> None:
        """Fetch these in this order, instead of those named before that nobody has begun with."""
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            self._waiting = deque(file for file in files if file.name not in self._running)
            for _ in range(min(self._num_threads - self._threads, len(self._waiting))):
                # A daemon: whoever ends its program doesn't wait for parts it won't read.
                threading.Thread(target=self._work, args=(fetch,), name="fetch", daemon=True).start()
                self._threads += 1

    def _work(self, fetch: Callable[[_File], None]) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                file = self._waiting.popleft()
                self._running.add(file.name)
            try:
                fetch(file)
            except DCAECacheError:
                pass  # whoever asks for the file tries again, and is told
            finally:
                with self._lock:
                    self._running.discard(file.name)


def _mirror_folder(root: str, chosen: str | Path | None) -> Path:
    if chosen is not None:
        return Path(chosen)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    address = root.removesuffix("?...")
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return home / "dcae-cache" / f"{address.rstrip('/').rpartition('/')[2]}-{digest}"
