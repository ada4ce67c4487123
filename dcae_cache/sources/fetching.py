"""Files and images at addresses: which ones a pattern or a list may name, and no more of them than is allowed.

Knows nothing of what they hold."""

from __future__ import annotations

import os
import posixpath
import re
import time
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from ..errors import SampleSkipped, SourceError
from ..remote import BLOCK_BYTES, WEB, ask, open_file
from ..urls import is_url
from .base import SourceOptions, too_large
from .commands import PIPE

# Where a list that was itself fetched from somewhere may send us: to stores, never to files of this machine.
_FOREIGN = frozenset(["http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci"])


_MOST_OF_A_PATTERN = 10**6  # files that braces may stand for


def matching_files(pattern: str) -> list[str]:
    """The files that a path or URL with ``*``, ``?`` or ``[...]`` stands for, sorted; without these, itself."""
    if not is_url(pattern):
        return (
            sorted(glob(pattern, recursive=True)) if has_magic(pattern) and not Path(pattern).exists() else [pattern]
        )
    if "*" not in pattern:  # ? and [ are common in URLs
        return [pattern]
    scheme = pattern.partition("://")[0]
    found = ask(pattern, lambda fs, path: fs.glob(path))
    return sorted(str(path) if is_url(str(path)) else f"{scheme}://{path}" for path in found)


def refuse_foreign_place(place: str, list_name: str) -> None:
    """Raise SourceError for what a list that came from a remote place may not name: files of this machine, commands,
    chained addresses, and patterns without end."""
    scheme = place.partition("://")[0].lower() if is_url(place) else None
    is_local = scheme not in _FOREIGN if scheme else os.path.isabs(place) or place.startswith(("~", "pipe:", "\\"))
    inner = any(mark in place for mark in ("::", "{/", ",/", "://{", "${")) or place.count("://") > bool(scheme)
    if is_local or inner:
        raise SourceError(
            f"{list_name} names {place}. A list from a remote place may name remote files alone, one a line. "
            "Download the list, look at it, and name the local copy if you trust it."
        )
    count = 1
    for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", place):
        count *= abs(int(last) - int(first)) + 1 if max(len(first), len(last)) < 10 else _MOST_OF_A_PATTERN + 1
    if count > _MOST_OF_A_PATTERN:
        raise SourceError(f"{list_name}: {place} stands for more than {_MOST_OF_A_PATTERN:,} files. Name fewer.")


def place_beside(folder: str, named: str) -> str:
    """The URL of an image that a table in the folder at a URL names: beside it, or itself a URL.

    Raises SampleSkipped for what a table from elsewhere may not name: files and commands of this machine.
    """
    home, _, rest = folder.partition("://")
    if is_url(named):
        scheme = named.partition("://")[0].lower()
        if "::" in named or scheme == "file" or scheme not in (*_FOREIGN, home.lower()):
            raise SampleSkipped("unreadable", f"a remote table names {named}: not read")
        return named
    path, mark, query = rest.partition("?")
    host, _, inner = path.partition("/")
    name = posixpath.normpath(f"{inner.strip('/')}/{named}".lstrip("/"))
    if named.startswith(("/", "~", "\\", PIPE)) or name == ".." or name.startswith("../"):
        raise SampleSkipped("unreadable", f"a remote table names a file of this machine, {named}: not read")
    return f"{home}://{host}/{quote(name) if folder.lower().startswith(WEB) else name}{mark}{query}"


def read_file(place: str, max_bytes: int) -> bytes:
    """A whole small file by path or URL. Raises SourceError where it has more than ``max_bytes``, or can't be read."""
    with open_file(place) as file:
        data = _read_up_to(file, max_bytes)
    if len(data) > max_bytes:
        raise SourceError(f"{place} has more than {max_bytes:,} bytes. Check that it is the right file.")
    return data


def fetch(url: str, options: SourceOptions) -> bytes:
    """The encoded image at a URL of any kind, no more of it than ``options.max_bytes``. Raises SampleSkipped."""
    if url.lower().startswith(WEB):
        from .downloads import download  # aiohttp takes longer to load than everything else of a start without torch

        return download(url, options)
    try:
        with open_file(url) as file:
            data = _read_up_to(file, options.max_bytes, time.monotonic() + options.url_timeout)
    except SourceError as error:
        raise SampleSkipped("unreadable", str(error)) from error
    if len(data) > options.max_bytes:
        raise too_large(url, None, options.max_bytes)
    return data


def _read_up_to(file: BinaryIO, max_bytes: int, deadline: float | None = None) -> bytes:
    """What a file gives, but no more than a byte beyond ``max_bytes``."""
    data = bytearray()
    while len(data) <= max_bytes and (block := file.read(min(BLOCK_BYTES, max_bytes + 1 - len(data)))):
        data += block
        if deadline is not None and time.monotonic() > deadline:
            raise SampleSkipped("timed_out", "it took longer than it may take")
    return bytes(data)
