"""Files by path or URL: how large they are, which match a pattern, and their bytes in order however often a connection
breaks.

Local files are opened directly, everything else through fsspec (http, s3, gs, hf and what else it has a driver for).
Knows nothing of what the files hold.
"""

from __future__ import annotations

import email.utils
import io
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar, cast

from .errors import DCAECacheError, MissingFileError, SourceError, one_line
from .text import stamp_of
from .urls import is_url

DEFAULT_USER_AGENT = "dcae-cache (+https://pypi.org/project/dcae-cache)"
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that may be others later
# Answers of S3 with another status that pass, too: a body that broke off on its way, and another request in between.
_AGAIN_CODES = frozenset(
    {"RequestTimeout", "IncompleteBody", "BadDigest", "OperationAborted", "ConditionalRequestConflict"}
)

_TRIES = 5  # in a row without a byte between them
_FIRST_PAUSE = 0.5  # seconds, doubled each time
_LONGEST_PAUSE = 300.0  # seconds that a store may ask for
_Result = TypeVar("_Result")
BLOCK_BYTES = 2**23  # bytes asked for at once
WEB = ("http://", "https://")
# What stores say of a file's version, most telling first.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "blob_id", "Content-MD5"),
    *("LastModified", "Last-Modified", "mtime", "updated", "created"),
)


def join_url(folder: str, name: str) -> str:
    """The URL of a file in a folder; a query (a signature for the whole folder) stays at the end."""
    path, mark, query = folder.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def file_size_and_version(place: str, user_agent: str = DEFAULT_USER_AGENT) -> tuple[int, int]:
    """(bytes, modification time in ns) of a local file; for a URL the second is a number made of its ETag or date.

    -1 where a store doesn't say. Raises SourceError for a file that isn't there or can't be asked about.
    """
    if not is_url(place):
        try:
            status = os.stat(place)
        except OSError as error:
            raise SourceError(f"Can't read {place}: {error.strerror}. Check the path.") from error
        return status.st_size, status.st_mtime_ns
    info = ask(place, lambda fs, path: fs.info(path), user_agent)
    size = info.get("size")
    return -1 if size is None else int(size), version_of(info)


def is_folder(url: str) -> bool:
    """Whether a store says that a URL is a folder, whatever its name; web servers have none. Raises SourceError."""
    return not url.lower().startswith(WEB) and ask(url, lambda fs, path: fs.info(path)["type"] == "directory")


def open_file(place: str, user_agent: str = DEFAULT_USER_AGENT) -> BinaryIO:
    """The bytes of a file, to be read from front to back. A broken connection is taken up again where it broke off.

    Raises SourceError, also while reading, for a file that isn't there or stays out of reach.
    """
    if not is_url(place):
        try:
            return open(place, "rb")
        except OSError as error:
            raise SourceError(f"Can't read {place}: {error.strerror}. Check the path.") from error
    size, _ = file_size_and_version(place, user_agent)
    return cast(BinaryIO, _Resuming(place, size if size >= 0 else None, user_agent))


def read_range(place: str, start: int, stop: int, user_agent: str = DEFAULT_USER_AGENT) -> bytes:
    """The bytes of a remote file from ``start`` up to ``stop``, in one request, tried again where the connection
    breaks. Raises SourceError, also where the server gives no ranges or the file is shorter."""

    def read(fs: Any, path: str) -> bytes:
        data = bytes(fs.cat_file(path, start=start, end=stop))
        if len(data) < stop - start and (fs.info(path).get("size") or stop) >= stop:
            raise ConnectionError(f"the connection was closed after {len(data)} of {stop - start} bytes")
        return data

    data = cast(bytes, ask(place, read, user_agent))
    if len(data) > stop - start:
        raise SourceError(f"{place} can't be read in pieces: its server sends the whole file. Download it first.")
    if len(data) < stop - start:
        raise SourceError(f"{place} ends before byte {stop}: it has changed since it was listed. Run again.")
    return data


class _Resuming(io.RawIOBase):
    """A remote file read in order. Knows its position, so no byte is missed or given twice."""

    def __init__(self, url: str, size: int | None, user_agent: str) -> None:
        self._url, self._size, self._user_agent = url, size, user_agent
        self._position = 0
        self._file: Any = None
        self._has_ranges = True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        try:
            data = persistently(lambda: self._read(len(buffer)))
        except Exception as error:  # every driver has its own
            if is_final(error):
                raise _failed(self._url, error) from error
            raise SourceError(
                f"{self._url} broke off at byte {self._position} of {self._size or 'unknown'}, and {_TRIES} "
                f"attempts to go on failed ({one_line(error)}). Run the same command again later."
            ) from error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, count: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._open_at_position()
            try:
                data = bytes(self._file.read(count))
            except ValueError as error:  # a server that answers a range with the whole file
                self._has_ranges = False
                raise ConnectionError(str(error)) from error
            if not data and self._size is not None and self._position < self._size:
                raise ConnectionError("the connection was closed")
        except Exception:
            self._drop()
            raise
        return data

    def _open_at_position(self) -> Any:
        fs, path = _store(self._url, self._user_agent)
        if self._has_ranges:
            file = fs.open(path, "rb", block_size=BLOCK_BYTES)
            if self._position:
                file.seek(self._position)
            return file
        file = fs.open(path, "rb", block_size=0)  # as one stream, so what is known is read again
        left = self._position
        while left:
            skipped = len(file.read(min(left, BLOCK_BYTES)))
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


def _store(url: str, user_agent: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path there."""
    import fsspec.core

    if not url.lower().startswith(WEB):
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
    told = {"headers": {"User-Agent": user_agent}}
    return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, client_kwargs=told))


def ask(url: str, question: Callable[[Any, str], Any], user_agent: str = DEFAULT_USER_AGENT, *, name: str = "") -> Any:
    """Put a question to the store of ``url``, again after a pause where it doesn't answer. With ``name`` it is about
    what has that name in the folder ``url``. Raises MissingFileError, and SourceError for anything else."""
    place = join_url(url, name) if name else url

    def attempt() -> Any:
        try:
            fs, path = _store(url, user_agent)
            return question(fs, f"{path.rstrip('/')}/{name}" if name else path)
        except (ImportError, ValueError) as error:  # no driver, or no such protocol
            raise SourceError(f"Can't read {place}: {one_line(error)}. Install the driver named there.") from error

    try:
        return persistently(attempt)
    except DCAECacheError:
        raise
    except Exception as error:
        raise _failed(place, error) from error


def persistently(action: Callable[[], _Result]) -> _Result:
    """What ``action`` gives, tried again after growing pauses, or as long ones as a store asks for, while it fails.

    What it raises at the fifth time in a row leaves as it is, and at once what another attempt can't help.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            return action()
        except Exception as error:  # every driver has its own
            if attempt == _TRIES or is_final(error):
                raise
            time.sleep(_pause(error, attempt))
    raise AssertionError("unreachable")


def is_final(error: Exception) -> bool:
    """Whether another attempt can't help: the store has answered, and not with a wish for patience."""
    if isinstance(error, DCAECacheError | ImportError):
        return True
    status, code = _answer(error)
    if status is not None and 400 <= status < 600:
        return status not in AGAIN and code not in _AGAIN_CODES
    return isinstance(error, PermissionError) or is_missing(error)


def _answer(error: BaseException) -> tuple[int | None, str | None]:
    """The HTTP status and the store's word for it that a driver's error carries, or the error that it came from."""
    if _own_status(error) is None and error.__cause__ is not None:
        return _answer(error.__cause__)
    response = getattr(error, "response", None)
    said = response.get("Error", {}) if isinstance(response, dict) else {}
    return _own_status(error), said.get("Code")


def _own_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # aiohttp's, azure's, httpx's
        told = [
            getattr(error, "status", None),
            getattr(error, "status_code", None),
            getattr(response, "status_code", None),
        ]
        status = next((value for value in told if isinstance(value, int)), None)
    return status if isinstance(status, int) else None


def _pause(error: BaseException, attempt: int) -> float:
    """Seconds before the next attempt: as many as the store asks for, else twice as many as before."""
    asked = status_pause(getattr(error, "headers", None) or getattr(error.__cause__, "headers", None))
    return _FIRST_PAUSE * 2 ** (attempt - 1) if asked is None else min(asked, _LONGEST_PAUSE)


def is_missing(error: BaseException) -> bool:
    """True where the store says that there is no such file. fsspec says so, too, where it can't reach the server."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None:
        return isinstance(cause, LookupError) or is_missing(cause)
    return isinstance(error, FileNotFoundError) or _own_status(error) in (404, 410)


def _failed(url: str, error: Exception) -> SourceError:
    if is_missing(error):
        return MissingFileError(f"There is no file {url}. Check the address.")
    said = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    return SourceError(f"Can't read {url}: {one_line(said)}. Check the address, the network and your access to it.")


def version_of(info: Mapping[str, Any]) -> int:
    """A number made of what a store says of a file's version; -1 where it says nothing."""
    for name in _VERSIONS:
        if info.get(name):
            return stamp_of(str(info[name]))
    return -1


def status_pause(headers: Mapping[str, str] | None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or a date; None where it says nothing of use."""
    said = (headers or {}).get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
