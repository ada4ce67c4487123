"""A folder in an object store, or wherever else fsspec reaches, for who reads from it: listed, asked about, read.

Knows nothing of trees or images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import MissingFileError
from ..remote import ask, join_url, version_of


class StoredItem(NamedTuple):
    """A file or folder as a listing tells of it. ``version`` is a number; -1, as the bytes, where nothing is told."""

    name: str  # in its folder
    is_folder: bool
    num_bytes: int
    version: int


class StoreFolder:
    """What lies below a URL. Every method tries again where the store doesn't answer, then raises SourceError, and
    MissingFileError at once where it says that nothing is there."""

    def __init__(self, url: str) -> None:
        self._url = url

    def list(self, name: str) -> list[StoredItem]:
        """What lies in one folder ("" for the root), in no order. One request, or one for each thousand files."""

        def listed(fs: Any, path: str) -> list[StoredItem]:
            fs.invalidate_cache(path)  # drivers keep what they have listed: an old listing, and its memory
            try:
                found = fs.ls(path, detail=True)
            finally:
                fs.invalidate_cache(path)
            start = f"{path.rstrip('/')}/"
            if [info["name"] for info in found] == [path.rstrip("/")] and found[0]["type"] != "directory":
                raise FileNotFoundError(path)  # a file of that name
            return [_item(info["name"][len(start) :], info) for info in found if info["name"].startswith(start)]

        try:
            found: list[StoredItem] = ask(self._url, listed, name=name)
        except MissingFileError as error:
            place = join_url(self._url, name) if name else self._url
            raise MissingFileError(f"There is no folder {place}. Check the address.") from error
        # A store may hold an empty object with the folder's own name, to mark it.
        return [item for item in found if item.name or item.is_folder]

    def stat(self, name: str) -> tuple[int, int]:
        """(bytes, version) of one file."""
        item = ask(self._url, lambda fs, path: _item(name, fs.info(path)), name=name)
        return item.num_bytes, item.version

    def read(self, name: str, max_bytes: int) -> bytes:
        """The first ``max_bytes`` of a file, in one request."""

        def read(fs: Any, path: str) -> bytes:
            try:
                return bytes(fs.cat_file(path, start=0, end=max_bytes))
            except FileNotFoundError:
                raise
            except Exception:  # every driver has its own for a range that isn't there
                if fs.info(path).get("size") == 0:  # no range of an empty file can be had
                    return b""
                raise

        data: bytes = ask(self._url, read, name=name)
        return data


def _item(name: str, info: Mapping[str, Any]) -> StoredItem:
    size = info.get("size")
    return StoredItem(
        name.strip("/"), info["type"] == "directory", -1 if size is None else int(size), version_of(info)
    )
