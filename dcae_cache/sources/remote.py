"""Files by path or URL: how large they are, which match a pattern, and their bytes in order however often a connection
breaks.

Local files are opened directly, everything else through fsspec (http, s3, gs, hf and what else it has a driver for).
Knows nothing of what the files hold.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Mapping
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import SourceError, one_line
from .base import stamp_of

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_TRIES = 5  # in a row without a byte between them
_FIRST_PAUSE = 0.5  # seconds, doubled each time
_BLOCK = 2**23  # bytes asked for at once
# What stores say of a file's version, most telling first.
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "LastModified", "Last-Modified", "mtime", "updated")


def is_url(text: str) -> bool:
    """True for scheme://rest, False for a path."""
    return _URL.match(text) is not None


def file_size_and_version(place: str) -> tuple[int, int]:
    """(bytes, modification time in ns) of a local file; for a URL the second is a number made of its ETag or date.

    -1 where a store doesn't say. Raises SourceError for a file that isn't there or can't be asked about.
    """
    if not is_url(place):
        try:
            status = os.stat(place)
        except OSError as error:
            raise SourceError(f"Can't read {place}: {error.strerror}. Check the path.") from error
        return status.st_size, status.st_mtime_ns
    info = _ask(place, lambda fs, path: fs.info(path))
    size = info.get("size")
    return -1 if size is None else int(size), _version(info)


def matching_files(pattern: str) -> list[str]:
    """The files that a path or URL with ``*``, ``?`` or ``[...]`` stands for, sorted; without these, itself."""
    if not is_url(pattern):
        return (
            sorted(glob(pattern, recursive=True)) if has_magic(pattern) and not Path(pattern).exists() else [pattern]
        )
    if "*" not in pattern:  # ? and [ are common in URLs
        return [pattern]
    scheme = pattern.partition("://")[0]
    found = _ask(pattern, lambda fs, path: fs.glob(path))
    return sorted(str(path) if is_url(str(path)) else f"{scheme}://{path}" for path in found)


def open_file(place: str) -> BinaryIO:
    """The bytes of a file, to be read from front to back. A broken connection is taken up again where it broke off.

    Raises SourceError, also while reading, for a file that isn't there or stays out of reach.
    """
    if not is_url(place):
        try:
            return open(place, "rb")
        except OSError as error:
            raise SourceError(f"Can't read {place}: {error.strerror}. Check the path.") from error
    size, _ = file_size_and_version(place)
    return cast(BinaryIO, _Resuming(place, size if size >= 0 else None))


class _Resuming(io.RawIOBase):
    """A remote file read in order. Knows its position, so no byte is missed or given twice."""

    def __init__(self, url: str, size: int | None) -> None:
        self._url, self._size = url, size
        self._position = 0
        self._file: Any = None
        self._has_ranges = True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        for attempt in range(1, _TRIES + 1):
            try:
                data = self._read(len(buffer))
                break
            except Exception as error:  # every driver has its own
                self._drop()
                if _is_final(error):
                    raise SourceError(_failed(self._url, error)) from error
                if attempt == _TRIES:
                    raise SourceError(
                        f"{self._url} broke off at byte {self._position} of {self._size or 'unknown'}, and {_TRIES} "
                        f"attempts to go on failed ({one_line(error)}). Run the same command again later."
                    ) from error
                time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, count: int) -> bytes:
        if self._file is None:
            self._file = self._open_at_position()
        try:
            data = bytes(self._file.read(count))
        except ValueError as error:  # a server that answers a range with the whole file
            self._has_ranges = False
            raise ConnectionError(str(error)) from error
        if not data and self._size is not None and self._position < self._size:
            raise ConnectionError("the connection was closed")
        return data

    def _open_at_position(self) -> Any:
        import fsspec.core

        fs, path = fsspec.core.url_to_fs(self._url)
        if self._has_ranges:
            file = fs.open(path, "rb", block_size=_BLOCK)
            if self._position:
                file.seek(self._position)
            return file
        file = fs.open(path, "rb", block_size=0)  # as one stream, so what is known is read again
        left = self._position
        while left:
            skipped = len(file.read(min(left, _BLOCK)))
            if not skipped:
                raise ConnectionError("the connection was closed")
            left -= skipped
        return file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except Exception:  # it is broken, which is why it is closed
                return


def _ask(url: str, question: Callable[[Any, str], Any]) -> Any:
    """Put a question to the store of ``url``, again after a pause where it doesn't answer."""
    import fsspec.core

    for attempt in range(1, _TRIES + 1):
        try:
            return question(*fsspec.core.url_to_fs(url))
        except (ImportError, ValueError) as error:  # no driver, or no such protocol
            raise SourceError(f"Can't read {url}: {one_line(error)}. Install the driver named there.") from error
        except Exception as error:
            if attempt == _TRIES or _is_final(error):
                raise SourceError(_failed(url, error)) from error
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _is_final(error: Exception) -> bool:
    return isinstance(error, PermissionError) or _is_missing(error)


def _is_missing(error: BaseException) -> bool:
    """True where the store says that there is no such file. fsspec says so, too, where it can't reach the server."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None:
        return _is_missing(cause)
    return isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (404, 410)


def _failed(url: str, error: Exception) -> str:
    if _is_missing(error):
        return f"There is no file {url}. Check the address."
    said = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    return f"Can't read {url}: {one_line(said)}. Check the address, the network and your access to it."


def _version(info: Mapping[str, Any]) -> int:
    for name in _VERSIONS:
        if info.get(name):
            return stamp_of(str(info[name]))
    return -1
