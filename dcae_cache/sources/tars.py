"""Input tars in the layout of the webdataset library: a sample is the members whose names agree up to the first dot.

One tar is one entry and one part. It is read from front to back, a sample at a time, from a disk, a URL or a command's
output. Keys are cut and members grouped by webdataset itself; the archive is walked here, because webdataset ends
quietly where a tar is damaged. Knows nothing of pixels.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self, cast

from ..errors import SampleSkipped, SourceError, UsageError
from ..images.formats import IMAGE_SUFFIXES
from ..records import Entry, Part, Sample, SampleRef
from .base import DAMAGED, NothingFound, SourceOptions
from .fields import notes_of
from .folder import path_to_location
from .remote import file_size_and_version, is_url, matching_files, open_file

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LIST_SUFFIXES = (".txt", ".list")
_PIPE = "pipe:"
_IMAGES = ("jpg", "jpeg", "png", "webp", "avif", *(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES)))
_META = re.compile(r"(^|.*/)__[^/]*__($|/)")  # webdataset's own bookkeeping
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, OSError)


class TarSource(NothingFound):
    """Tars named by a path, a URL, a pattern with braces or ``*``, or a text file with one of these a line."""

    entries_per_part: int | None = 1

    def __init__(self, uri: str, options: SourceOptions) -> None:
        self._options = options
        is_path = not is_url(uri) and not uri.startswith(_PIPE)
        self.uri = os.path.abspath(uri) if is_path else uri

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        """The tars in the order they were named, those of a pattern sorted.

        Raises SourceError for one that isn't there, UsageError for a command unless commands are allowed.
        """
        left = limit
        for tar in self._tars():
            if left is None:
                yield self._entry(tar, None)
                continue
            found = sum(1 for _ in islice(self._samples(tar, None), left + 1))
            yield self._entry(tar, left if found > left else None)
            left -= found
            if left <= 0:
                return

    def read(self, part: Part) -> Iterator[SampleRef]:
        for entry in part.entries:
            yield from self._samples(entry.location, entry.max_samples)

    def _tars(self) -> list[str]:
        from webdataset.shardlists import expand_urls

        if self.uri.endswith(LIST_SUFFIXES) and not self.uri.startswith(_PIPE):
            patterns = _lines(self.uri)
        elif not is_url(self.uri) and Path(self.uri).exists():  # a name with braces or stars in it
            return [self.uri]
        else:
            patterns = [self.uri]
        tars = []
        for pattern in patterns:
            if pattern.startswith(_PIPE):
                self._refuse_command(pattern)
                tars += expand_urls(pattern)
                continue
            found = [tar for name in expand_urls(pattern) for tar in matching_files(name)]
            if not found:
                raise SourceError(f"No tar matches {pattern}. Check the pattern, and quote it so the shell keeps it.")
            tars += found
        return tars

    def _refuse_command(self, command: str) -> None:
        if not self._options.allow_pipe:
            raise UsageError(f"{command} would run a shell command. Pass `allow_pipe` if that is what you want.")

    def _entry(self, tar: str, max_samples: int | None) -> Entry:
        num_bytes, version = (-1, -1) if tar.startswith(_PIPE) else file_size_and_version(tar)
        return Entry(tar, tar, num_bytes, version, max_samples)

    def _samples(self, tar: str, count: int | None) -> Iterator[SampleRef]:
        from webdataset.tariterators import group_by_keys

        damage: list[str] = []
        with self._open(tar) as file:
            members = _members(tar, file, damage)
            groups = group_by_keys(members, handler=partial(_refuse_member, tar))
            for group in islice(groups, count):
                yield self._ref(tar, group)
            if damage:
                yield _broken_off(tar, damage[0])

    def _open(self, tar: str) -> BinaryIO:
        if tar.startswith(_PIPE):
            self._refuse_command(tar)
            return cast(BinaryIO, _Output(tar.removeprefix(_PIPE)))
        return open_file(tar)

    def _ref(self, tar: str, group: dict[str, Any]) -> SampleRef:
        key = group["__key__"]
        kind = self._image_kind(group)
        source = f"{tar}/{key}.{kind}" if kind else f"{tar}/{key}"
        data: bytes = group[kind] if kind else b""
        return SampleRef(key, source, partial(self._sample, tar, source, group, kind), lambda: BytesIO(data))

    def _image_kind(self, group: dict[str, Any]) -> str | None:
        """The suffix that holds the image: the one named, else a known one, else the only one that ends in a known
        one ("photo.jpg")."""
        if self._options.image_column:
            return self._options.image_column if self._options.image_column in group else None
        for kind in _IMAGES:
            if kind in group:
                return kind
        ending = [suffix for suffix in group if suffix.rpartition(".")[2] in _IMAGES]
        return ending[0] if len(ending) == 1 else None

    def _sample(self, tar: str, source: str, group: dict[str, Any], kind: str | None) -> Sample:
        key = group["__key__"]
        if kind is None:
            found = ", ".join(name for name in group if not name.startswith("__")) or "nothing"
            raise SampleSkipped("no_image", f"{key} has no image member; found {found}")
        notes = notes_of(_json(group.get("json"), key), self._options)
        caption = _text(group.get("txt"), key) or notes.caption
        label = _text(group.get("cls"), key) or notes.label
        return Sample(key, group[kind], source, caption, label, notes.attributes, _stem(tar))


def _members(tar: str, file: BinaryIO, damage: list[str]) -> Iterator[dict[str, Any]]:
    """Name and bytes of each file in the archive, as webdataset's grouping wants them. Where the archive is damaged
    this ends, and ``damage`` holds the reason; what belongs to the sample that was cut is left out."""
    # A sample's members are held back until the next sample has begun, or the archive has ended as it should.
    held: list[dict[str, Any]] = []
    kinds: set[str | None] = set()  # of the members of the sample before
    try:
        for name, data in _walk(file):
            if held and _split(held[0]["fname"])[0] != _split(name)[0]:
                yield from held
                kinds = {_split(member["fname"])[1] for member in held}
                held = []
            held.append({"fname": name, "data": data, "__url__": tar})
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk or the network, not the archive
            raise SourceError(f"Can't read {tar}: {error.strerror}. Run the same command again later.") from error
        if {_split(member["fname"])[1] for member in held} == kinds or (isinstance(error, _NoEndMark) and not kinds):
            yield from held  # it has what the sample before had, so nothing is missing
        damage.append(f"{tar} is damaged after {file.tell()} bytes: {' '.join(str(error).split())}")
        return
    yield from held


def _walk(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    ending: list[str] = []
    with tarfile.open(fileobj=file, mode="r|*", bufsize=2**20, tarinfo=_watched(ending)) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            if not member.isreg() or _META.match(member.name):
                continue
            content = archive.extractfile(member)
            assert content is not None, "regular files have content"
            data = content.read()
            if len(data) < member.size:
                raise tarfile.ReadError(f"{member.name} ends after {len(data)} of {member.size} bytes")
            yield path_to_location(member.name), data
    if ending[-1:] == ["EmptyHeaderError"]:
        raise _NoEndMark("the end-of-archive mark is missing, so more may be")
    if ending[-1:] != ["EOFHeaderError"]:
        raise tarfile.ReadError("a header is broken")


class _NoEndMark(tarfile.ReadError):
    """The archive ends behind a whole member, but not as archives end."""


def _watched(ending: list[str]) -> type[tarfile.TarInfo]:
    """A TarInfo that notes which kind of header ended the archive: tarfile takes a broken one for the end."""

    class Watched(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                ending.append(type(error).__name__)
                raise

    return Watched


def _broken_off(tar: str, damage: str) -> SampleRef:
    def fail() -> Any:
        raise SampleSkipped(DAMAGED, damage)

    return SampleRef(f"{_stem(tar)}/__damaged__", tar, fail, fail)


def _refuse_member(tar: str, error: Exception) -> bool:
    if isinstance(error, ValueError):
        raise SourceError(f"{tar} holds two members of one name: {error.args[0]}. Make the tar again.") from error
    raise error


def _split(name: str) -> tuple[str | None, str | None]:
    """(key, suffix) as webdataset cuts them."""
    from webdataset.tariterators import base_plus_ext

    return cast("tuple[str | None, str | None]", base_plus_ext(name))


def _stem(tar: str) -> str:
    """ "data/00012.tar.gz" -> "00012"."""
    name = PurePosixPath(tar.partition("?")[0] if is_url(tar) else tar).name
    return next((name.removesuffix(suffix) for suffix in reversed(TAR_SUFFIXES) if name.endswith(suffix)), name)


def _lines(place: str) -> list[str]:
    """What a list of tars names: a line each, relative to the list, ``#`` for remarks."""
    with open_file(place) as file:
        text = file.read().decode("utf-8-sig", "replace")
    lines = [line.strip() for line in text.splitlines()]
    named = [line for line in lines if line and not line.startswith("#")]
    if not named:
        raise SourceError(f"{place} names no tars; expected one path or URL a line.")
    base = place.rpartition("/")[0] if is_url(place) else os.path.dirname(place)
    keep = (is_url, os.path.isabs, lambda line: line.startswith(_PIPE))
    return [line if any(test(line) for test in keep) else f"{base}/{line}" for line in named]


def _json(data: bytes | None, key: str) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except ValueError as error:
        raise SampleSkipped("bad_json", f"{key}.json: {error}") from error
    return value if isinstance(value, dict) else {"json": value}


def _text(data: bytes | None, key: str) -> str | None:
    if data is None:
        return None
    try:
        return data.decode("utf-8-sig").strip() or None
    except UnicodeDecodeError as error:
        raise SampleSkipped("bad_caption", f"{key}: {error}") from error


class _Output:
    """What a shell command writes. That the command failed is told apart from the end of its output."""

    def __init__(self, command: str) -> None:
        self._command, self._position = command, 0
        self._process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE)

    def read(self, count: int = -1) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        self._position += len(data)
        if len(data) < count and self._process.wait():
            raise SourceError(
                f"{_PIPE}{self._command} failed with exit status {self._process.returncode} after {self._position} "
                "bytes. Run the command by hand to see why."
            )
        return data

    def tell(self) -> int:
        return self._position

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.terminate()  # it may have more to say than was wanted
        self._process.wait()
