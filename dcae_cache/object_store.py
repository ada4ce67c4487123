"""A folder in an object store, for who writes to it: files put there and checked, fetched, listed, removed.

Spoken to through fsspec (s3, gs, abfs and what else it has a driver for); messages show addresses without secrets.
Knows nothing of what the files hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import CacheError, MissingFileError, SourceError, one_line
from .files import replace_atomically, sha256_of_file
from .remote import is_missing, join_url, open_file, persistently
from .urls import without_secrets

_BLOCK = 2**22
_CHUNK = 2**26  # bytes of the pieces that large files are sent in, where the driver lets us say so
_CHUNKED = ("s3", "s3a")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What a store says of a file. ``etag`` is None where it gives none."""

    num_bytes: int
    etag: str | None


class ObjectStore:
    """The files below ``url``. Every method tries again where the store doesn't answer, then raises CacheError."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.name = without_secrets(self._url)
        self._opened: tuple[Any, str] | None = None

    def files(self) -> dict[str, StoredFile]:
        """Every file below, by its name relative to the folder."""

        def ask(fs: Any, root: str) -> dict[str, StoredFile]:
            fs.invalidate_cache()
            try:
                found = fs.find(root, detail=True)
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise
                return {}
            start = f"{root.rstrip('/')}/"
            return {path[len(start) :]: _stored(info) for path, info in found.items() if path.startswith(start)}

        return self._try("list", "", ask)

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None where there is none."""

        def ask(fs: Any, root: str) -> bytes | None:
            try:
                return bytes(fs.cat_file(join_url(root, name)))
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise
                return None

        return self._try("read", name, ask)

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to ``path``, whole or not at all."""

        if not self.fetch_if_there(name, path):
            raise CacheError(f"There is no file {join_url(self.name, name)}. Check the address.")

    def fetch_if_there(self, name: str, path: Path) -> bool:
        """As ``fetch``; False where there is no such file. What breaks off is taken up again where it did."""
        try:
            with open_file(join_url(self._url, name)) as source, replace_atomically(path) as file:
                while block := source.read(_BLOCK):
                    file.write(block)
        except MissingFileError:
            return False
        except SourceError as error:
            raise CacheError(str(error)) from error
        return True

    def put(self, path: Path, name: str) -> None:
        """Send a file, and make sure that the store holds just these bytes: by its checksum, or by reading it back."""
        plain, pieces = _etags(path)

        def send(fs: Any, root: str) -> None:
            place = join_url(root, name)
            if "/" in name:
                fs.makedirs(place.rpartition("/")[0], exist_ok=True)  # nothing where folders are but names
            fs.put_file(str(path), place, **({"chunksize": _CHUNK} if _protocols(fs) & set(_CHUNKED) else {}))
            fs.invalidate_cache()
            stored = _stored(fs.info(place))
            if stored.num_bytes != path.stat().st_size:
                raise ConnectionError(f"{stored.num_bytes} bytes arrived of {path.stat().st_size}")
            if stored.etag not in (plain, pieces) and _read_back(fs, place) != sha256_of_file(path):
                raise ConnectionError("other bytes arrived than were sent")

        self._try("write", name, send)

    def holds(self, stored: StoredFile | None, path: Path) -> bool:
        """Whether the store's word on a file is proof that it is the one at ``path``."""
        if stored is None or stored.num_bytes != path.stat().st_size:
            return False
        return stored.etag in _etags(path)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one, as far as the store can tell at once; False where there is one."""

        def make(fs: Any, root: str) -> bool:
            try:
                fs.pipe_file(join_url(root, name), data, mode="create")
            except Exception as error:
                if isinstance(error, FileExistsError) or "PreconditionFailed" in str(error):
                    return False
                raise
            return True

        return self._try("write", name, make)

    def replace(self, name: str, data: bytes) -> None:
        """Write a small file, whatever is there."""
        self._try("write", name, lambda fs, root: fs.pipe_file(join_url(root, name), data))

    def delete(self, names: Iterable[str]) -> None:
        """Remove files, one after another in this order; those that are gone already are passed over."""

        def remove(fs: Any, root: str) -> None:
            try:
                fs.rm_file(join_url(root, name))
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise

        for name in names:
            self._try("remove", name, remove)

    def _try(self, verb: str, name: str, action: Callable[[Any, str], _Result]) -> _Result:
        try:
            return persistently(lambda: action(*self._open()))
        except CacheError:
            raise
        except Exception as error:  # every driver has its own
            raise self._failed(verb, name, error) from error

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            import fsspec.core

            fs, root = fsspec.core.url_to_fs(self._url, use_listings_cache=False)
            self._opened = fs, str(root).rstrip("/")
        return self._opened

    def _failed(self, verb: str, name: str, error: BaseException) -> CacheError:
        said = without_secrets(one_line(error))
        place = join_url(self.name, name) if name else self.name
        return CacheError(
            f"Can't {verb} {place}: {said}. Check the address, the network and your access to it, then run the same "
            "command again: what has been sent is kept."
        )


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _stored(info: dict[str, Any]) -> StoredFile:
    etag = info.get("ETag") or info.get("etag")
    return StoredFile(int(info.get("size") or 0), str(etag).strip('"') if etag else None)


def _etags(path: Path) -> tuple[str, str]:
    """What S3 calls a file of these bytes: sent at once, or in pieces (the digest of their digests, and how many)."""
    whole, pieces = hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
            pieces.append(hashlib.md5(chunk, usedforsecurity=False).digest())
    joined = hashlib.md5(b"".join(pieces), usedforsecurity=False).hexdigest()
    return whole.hexdigest(), f"{joined}-{len(pieces)}"


def _read_back(fs: Any, place: str) -> str:
    digest = hashlib.sha256()
    with fs.open(place, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
