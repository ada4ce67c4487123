"""A folder of image files, nested as deep as it likes, with captions and labels beside the images.

The key of a sample is its path in the folder without an image's suffix; a directory is walked in sorted order, and
reached only once however many symbolic links lead to it. Listing opens no file, unless ``any_suffix`` asks for images
by their content: then it reads the first bytes of those without a known suffix. Nothing is ever written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote, unquote_to_bytes

from ..errors import TRANSIENT, SampleSkipped, SourceError
from ..images.formats import HEAD_BYTES, IMAGE_SUFFIXES, looks_like_image
from ..ledger import BEYOND_LIMIT, HIDDEN, Counts, SourceCounts
from ..records import Entry, Notes, Part, Sample, SampleRef
from .annotations import FolderAnnotations, digest
from .base import NOTES_OPTIONS, SourceOptions, too_large
from .beside import FieldSearch

_UNDECODABLE = "file:"  # stands before the percent-encoded form of a name that isn't UTF-8


_LAST_TIME = 2**63 - 1  # nanoseconds since 1970 that 64 bits hold: the year 2262


class FolderSource:
    """Images of a folder tree. See ``Source`` for the contract."""

    entries_per_part: int | None = None
    kind: str = "a folder of images"
    notes_apart: bool = True
    honours: frozenset[str] = frozenset((*NOTES_OPTIONS, "delimiter", "any_suffix"))

    def __init__(self, root: Path, options: SourceOptions) -> None:
        self.root = root
        self.uri = os.path.abspath(root)
        self._options = options
        self._annotations = FolderAnnotations(root, options)
        self._is_image = _is_image_inside if options.any_suffix else _has_image_suffix
        self._counts: Counts | None = None
        self._max_bytes = options.max_bytes

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        """Every file with an image suffix, hidden ones left out, in the order of a sorted walk.

        Raises SourceError for a directory that can't be listed, a folder without images, a metadata file that can't be
        parsed, and where a column that the options name is in none of the files beside the images.
        """
        self._annotations.forget()
        counts = self._counts = Counts()
        search = FieldSearch(self._options)
        is_cut = False
        for path, name in _walk(self.root, self._annotations, counts, self._is_image):
            is_cut = counts.images == limit
            if is_cut:
                break
            counts.images += 1
            if not search.is_over:
                with suppress(SampleSkipped):  # broken JSON
                    search.look_at(self._annotations.fields(Path(path), name))
            yield _entry(path, name)
        if not counts.images:
            raise SourceError(_no_images(self.root, counts))
        if is_cut:  # of the folders that were listed, what is left over
            counts.ignored[BEYOND_LIMIT] = (
                counts.found - counts.images - counts.notes - counts.strays - counts.ignored.total()
            )
        else:
            self._annotations.finish(counts)
        search.refuse_missing(self.uri)

    def found(self) -> dict[str, Any]:
        return self._annotations.found()

    def adopt(self, found: Mapping[str, Any]) -> None:
        self._annotations.adopt(found)

    def counts(self) -> SourceCounts:
        return SourceCounts(listed=self._counts)

    def notes_stamp(self, part: Part) -> str:
        """Changes with the files beside the part's images, rows about them, and options that say how to read these."""
        if self._annotations.is_empty:
            return self._annotations.options_stamp()
        names = ((entry, location_to_path(entry.location)) for entry in part.entries)
        stamps = (f"{entry.key} {self._annotations.stamp(self.root / name, name)}" for entry, name in names)
        return digest([self._annotations.options_stamp(), *stamps])

    def read(self, part: Part) -> Iterator[SampleRef]:
        for entry in part.entries:
            load, open_image, notes = (
                partial(self._load, entry),
                partial(self._open, entry),
                partial(self._notes, entry),
            )
            yield SampleRef(entry.key, entry.location, load, open_image, notes)

    def _open(self, entry: Entry) -> BinaryIO:
        return _open_image(self._path(entry), self._max_bytes)

    def _path(self, entry: Entry) -> Path:
        """Where an entry lies: in this folder, whatever a plan says."""
        name = PurePosixPath(location_to_path(entry.location))
        if name.is_absolute() or ".." in name.parts:
            raise SampleSkipped("missing", f"{entry.location} is not in the folder {self.uri}")
        return self.root / name

    def _notes(self, entry: Entry) -> Notes:
        return self._annotations.of(self._path(entry), location_to_path(entry.location))

    def _load(self, entry: Entry) -> Sample:
        path = self._path(entry)
        with _open_image(path, self._max_bytes) as file:
            data = file.read(self._max_bytes + 1)
        if len(data) > self._max_bytes:  # it has grown meanwhile
            raise too_large(entry.location, None, self._max_bytes)
        notes = self._annotations.of(path, location_to_path(entry.location))
        return Sample(entry.key, data, entry.location, notes.caption, notes.label, notes.attributes)


def holds_images(root: Path, *, any_suffix: bool = False) -> bool:
    """Whether there is any image in the folder tree."""
    is_image = _is_image_inside if any_suffix else _has_image_suffix
    try:
        return next(_walk(root, None, Counts(), is_image), None) is not None
    except SourceError:  # a directory that can't be listed: listing says so
        return True


def _no_images(root: Path, counts: Counts) -> str:
    kinds = " ".join(sorted(IMAGE_SUFFIXES))
    there = {**counts.ignored}
    if counts.notes + counts.strays:
        there["captions and the like"] = counts.notes + counts.strays
    found = ", ".join(f"{number} {kind}" for kind, number in sorted(there.items(), key=lambda item: -item[1])[:8])
    return (
        f"No images found in {root} (looked for {kinds}, in subfolders too); found "
        f"{found or 'nothing'}. Images of other names are found by their content with `any_suffix`."
    )


def _walk(
    root: Path,
    annotations: FolderAnnotations | None,
    counts: Counts,
    is_image: Callable[[os.DirEntry[str]], bool],
) -> Iterator[tuple[str, str]]:
    """(full path, path relative to root) of each image. ``annotations`` hear of all other files, and ``counts`` counts
    everything."""
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
        images, others, subfolders = [], [], []
        for entry in entries:
            if entry.name.startswith("."):
                if annotations is not None:
                    counts.ignore(HIDDEN, _count_hidden(entry))
            elif _is_folder(entry):
                subfolders.append((entry.path, f"{prefix}{entry.name}/"))
            elif is_image(entry):
                images.append(entry.name)
            else:
                others.append(entry.name)
        counts.found += len(images)
        if annotations is not None:  # all of a directory is noticed before its first image goes out
            annotations.notice(prefix, images, others, counts)
        yield from ((os.path.join(directory, name), prefix + name) for name in images)
        pending.extend(reversed(subfolders))


def _count_hidden(entry: os.DirEntry[str]) -> int:
    """1 for a hidden file; of a hidden folder, the files in it."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(names) for _, _, names in os.walk(entry.path))


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
        num_bytes, mtime_ns = info.st_size, time_in_64_bits(info.st_mtime_ns)
    location = path_to_location(name)
    return Entry(_key(location), location, num_bytes, mtime_ns)


def time_in_64_bits(time_ns: int) -> int:
    """The time, or the nearest that 64 bits hold: some file systems and archives know the year 2300."""
    return max(-_LAST_TIME, min(_LAST_TIME, time_ns))


def _open_image(path: Path, max_bytes: int) -> BinaryIO:
    """Open a regular file of no more than ``max_bytes``. Anything else is refused before it is opened: a pipe would
    block for ever."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise SampleSkipped("unreadable", "not a regular file")
        if status.st_size > max_bytes:
            raise too_large(path.name, status.st_size, max_bytes)
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
