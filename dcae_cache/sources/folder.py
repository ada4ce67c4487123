"""A folder of image files, nested as deep as it likes, with captions and labels beside the images.

The key of a sample is its path in the folder without an image's suffix; a directory is walked in sorted order, and
reached only once however many symbolic links lead to it. Listing opens no file, unless ``any_suffix`` asks for images
by their content: then it reads the first bytes of those without a known suffix. Nothing is ever written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote, unquote_to_bytes

from ..errors import TRANSIENT, SampleSkipped, SourceError
from ..images.formats import HEAD_BYTES, IMAGE_SUFFIXES, looks_like_image
from ..records import Entry, Part, Sample, SampleRef
from .annotations import FolderAnnotations
from .base import SourceOptions

_UNDECODABLE = "file:"  # stands before the percent-encoded form of a name that isn't UTF-8


class FolderSource:
    """Images of a folder tree. See ``Source`` for the contract."""

    entries_per_part: int | None = None

    def __init__(self, root: Path, options: SourceOptions) -> None:
        self.root = root
        self.uri = os.path.abspath(root)
        self._annotations = FolderAnnotations(root, options)
        self._is_image = _is_image_inside if options.any_suffix else _has_image_suffix

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        """Every file with an image suffix, hidden ones left out, in the order of a sorted walk.

        Raises SourceError for a directory that can't be listed and for a folder without images.
        """
        found = False
        self._annotations.forget()
        for path, name in islice(_walk(self.root, self._annotations.notice, self._is_image), limit):
            found = True
            yield _entry(path, name)
        if not found:
            kinds = " ".join(sorted(IMAGE_SUFFIXES))
            raise SourceError(
                f"No images found in {self.root} (looked for {kinds}, in subfolders too). "
                "Images of other names are found by their content with `any_suffix`."
            )

    def found(self) -> dict[str, Any]:
        return self._annotations.found()

    def adopt(self, found: Mapping[str, Any]) -> None:
        self._annotations.adopt(found)

    def read(self, part: Part) -> Iterator[SampleRef]:
        for entry in part.entries:
            path = self.root / location_to_path(entry.location)
            yield SampleRef(entry.key, entry.location, partial(self._load, entry, path), partial(_open_image, path))

    def _load(self, entry: Entry, path: Path) -> Sample:
        with _open_image(path) as file:
            data = file.read()
        notes = self._annotations.of(path, location_to_path(entry.location))
        return Sample(entry.key, data, entry.location, notes.caption, notes.label, notes.attributes)


def _walk(
    root: Path, notice: Callable[[str, str], None], is_image: Callable[[os.DirEntry[str]], bool]
) -> Iterator[tuple[str, str]]:
    """(full path, path relative to root) of each image; ``notice`` hears of every other file's name."""
    seen: set[tuple[int, int]] = set()
    pending = [(str(root), "")]
    while pending:
        directory, prefix = pending.pop()
        try:
            info = os.stat(directory)
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(directory) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(
                f"Can't list the folder {directory}: {error.strerror}. Make it readable, or leave it out."
            ) from error
        images, subfolders = [], []
        for entry in entries:  # all of a directory is noticed before its first image goes out
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                subfolders.append((entry.path, f"{prefix}{entry.name}/"))
            elif is_image(entry):
                images.append((entry.path, prefix + entry.name))
            else:
                notice(entry.name, prefix)
        yield from images
        pending.extend(reversed(subfolders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _has_image_suffix(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES


def _is_image_inside(entry: os.DirEntry[str]) -> bool:
    """By the suffix, or else by the first bytes of a regular file; one that can't be read is taken for no image."""
    if _has_image_suffix(entry):
        return True
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            return looks_like_image(file.read(HEAD_BYTES))
    except OSError:
        return False


def _key(location: str) -> str:
    """The location without the suffix of an image; another suffix is a part of the name."""
    path = PurePosixPath(location)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else location


def _entry(path: str, name: str) -> Entry:
    try:
        info = os.stat(path)
    except OSError:  # a broken or circular link: listed all the same, so that it gets its row
        num_bytes, mtime_ns = -1, -1
    else:
        num_bytes, mtime_ns = info.st_size, info.st_mtime_ns
    location = path_to_location(name)
    return Entry(_key(location), location, num_bytes, mtime_ns)


def _open_image(path: Path) -> BinaryIO:
    """Open a regular file. Anything else is refused before it is opened: a pipe would block for ever."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SampleSkipped("unreadable", "not a regular file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise SampleSkipped("missing", "the file is gone, or a link that leads nowhere") from error
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        raise SampleSkipped("unreadable", error.strerror or str(error)) from error


def path_to_location(name: str) -> str:
    """A relative path as UTF-8 text: as it is, or percent-encoded behind "file:" where its bytes aren't UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return _UNDECODABLE + quote(os.fsencode(name))
    return _UNDECODABLE + quote(name) if name.startswith(_UNDECODABLE) else name


def location_to_path(location: str) -> str:
    """The inverse of ``path_to_location``."""
    if location.startswith(_UNDECODABLE):
        return os.fsdecode(unquote_to_bytes(location.removeprefix(_UNDECODABLE)))
    return location
