"""The members of a tar from front to back: of compressed ones, of several tars in one file, of damaged ones up to the
damage.

tarfile reads the archive; webdataset, which ends quietly where a tar is damaged, doesn't. Knows nothing of samples.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import pyarrow as pa

from ..text import human_bytes
from .xz import XzStream

DAMAGE = (
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException),
    *(ValueError, OverflowError, IndexError),  # of headers that make no sense
)
_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_MAX_HEADER_BYTES = 2**20  # of a long name or pax header, which tarfile reads whole
_LONGEST_MARK = 6
_XZ = b"\xfd7zXZ\0"
_ZSTD = b"\x28\xb5\x2f\xfd"
_BLOCK = 512
_BUFFER = 2**20


@dataclass(frozen=True, slots=True)
class TooLarge:
    """Stands for the bytes of a member that were not read: compressed or sparse, they may be next to nothing in the
    archive."""

    num_bytes: int | None  # None: it isn't known how many

    def __len__(self) -> int:
        """What it takes in memory."""
        return 0


class NoEndMark(tarfile.ReadError):
    """The archive ends behind a whole member, but not as archives end."""


Content = bytes | TooLarge


def walk_members(
    file: BinaryIO,
    linked: Callable[[str], Content | None] = lambda name: None,
    room: Callable[[str], int] = lambda name: sys.maxsize,
) -> Iterator[tuple[str, Content | None]]:
    """(name, content) of each file; raises one of DAMAGE where the archive is damaged.

    ``linked`` gives the content of a member that is only a link, by its name; None where it can't be had. ``room``
    says how many bytes a member may have: of a larger one there is a TooLarge, and it is not read.
    """
    stream: Any = _decompressed(file)
    with ExitStack() as open_archives:  # those behind the first are read through it
        while stream is not None:
            ending: list[str] = []
            archive = open_archives.enter_context(
                tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER, tarinfo=_watched(ending))
            )
            yield from _files(archive, linked, room)
            if ending[-1:] == ["EmptyHeaderError"]:
                raise NoEndMark("the end-of-archive mark is missing, so more may be")
            if ending[-1:] != ["EOFHeaderError"]:
                raise tarfile.ReadError("a header is broken")
            stream = _next_archive(archive.fileobj)


def first_name(tar: str) -> str | None:
    """The name of the first file in a local tar, by its header alone; None where that can't be told."""
    try:
        with (
            open(tar, "rb") as file,
            tarfile.open(fileobj=_decompressed(file), mode="r|", tarinfo=_watched([])) as archive,
        ):
            return next((member.name for member in archive if member.isreg()), None)
    except DAMAGE:
        return None


class LinkedMembers:
    """Follows hard and symbolic links within a local tar. Its headers are read on first use."""

    def __init__(self, tar: str) -> None:
        self._tar = tar
        self._archive: tarfile.TarFile | None = None
        self._open = ExitStack()

    def content(self, name: str, max_bytes: int) -> Content | None:
        """What the link of that name leads to, or None where that is no file of the tar."""
        try:
            if self._archive is None:
                self._archive = self._opened()
            content = self._archive.extractfile(name)
            data = None if content is None else content.read(max_bytes + 1)
            return TooLarge(None) if data is not None and len(data) > max_bytes else data
        except (KeyError, *DAMAGE):
            return None

    def close(self) -> None:
        self._open.close()

    def _opened(self) -> tarfile.TarFile:
        file = self._open.enter_context(Path(self._tar).open("rb"))  # noqa: SIM115 - closed by close
        is_xz = file.read(len(_XZ)) == _XZ
        file.seek(0)
        stream: Any = io.BufferedReader(XzStream(file)) if is_xz else file
        opened = tarfile.open(fileobj=stream, tarinfo=_watched([]))  # noqa: SIM115 - closed by close
        return self._open.enter_context(opened)


def _files(
    archive: tarfile.TarFile, linked: Callable[[str], Content | None], room: Callable[[str], int]
) -> Iterator[tuple[str, Content | None]]:
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
        if member.islnk() or member.issym():
            yield member.name, linked(member.name)
        if not member.isreg():
            continue
        if member.size > room(member.name):
            yield member.name, TooLarge(member.size)
            continue
        content = archive.extractfile(member)
        assert content is not None, "regular files have content"
        data = content.read()
        if len(data) < member.size:
            raise tarfile.ReadError(f"{member.name} ends after {len(data)} of {member.size} bytes")
        yield member.name, data


def _decompressed(file: BinaryIO) -> Any:
    """The file, or what is packed in it, a bounded piece at a time: tarfile unpacks whole blocks, and a megabyte of
    gzip can be a gigabyte of zeros."""
    start = b""
    while len(start) < _LONGEST_MARK and (more := file.read(_LONGEST_MARK - len(start))):
        start += more
    whole: Any = _Behind(start, file)
    if start.startswith(_ZSTD):
        return pa.CompressedInputStream(pa.PythonFile(whole, "r"), "zstd")
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=whole, mode="rb")
    if start.startswith(b"BZh"):
        return bz2.BZ2File(whole)
    return io.BufferedReader(XzStream(whole)) if start == _XZ else whole


def _next_archive(stream: Any) -> Any:
    """What begins behind the end of an archive, if it is another one: ``cat a.tar b.tar`` makes such files."""
    try:
        while block := stream.read(_BLOCK):
            if block.strip(b"\0"):
                tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
                return _Behind(block, stream)
    except DAMAGE:  # no archive, or nothing but padding that was cut
        return None
    return None


class _Behind:
    """A stream with some bytes, which were read of it already, put back before it."""

    closed = False

    def __init__(self, start: bytes, rest: Any) -> None:
        self._start, self._rest = start, rest

    def read(self, count: int = -1) -> bytes:
        start, self._start = (self._start, b"") if count < 0 else (self._start[:count], self._start[count:])
        missing = -1 if count < 0 else count - len(start)
        return start + self._rest.read(missing) if missing else start

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Whoever opened the stream closes it."""


def _watched(ending: list[str]) -> type[tarfile.TarInfo]:
    """A TarInfo that notes which kind of header ended the archive: tarfile takes a broken one for the end."""

    class Watched(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            try:
                header = super().frombuf(buf, encoding, errors)
                if header.type in _HEADERS and header.size > _MAX_HEADER_BYTES:
                    raise tarfile.ReadError(f"a member's name takes {human_bytes(header.size)}")
                return header
            except tarfile.HeaderError as error:
                ending.append(type(error).__name__)
                raise

    return cast("type[tarfile.TarInfo]", Watched)
