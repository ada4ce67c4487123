"""A folder of image files, nested as deep as it likes, with captions and labels beside the images.

The key of a sample is its path in the folder without an image's suffix; the tree is walked in sorted order (trees.py).
Listing opens no file, unless ``any_suffix`` asks for images by their content: then it reads the first bytes of those
without a known suffix. Nothing is ever written. Knows nothing of where the tree lies: on a disk or in a store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, BinaryIO
from urllib.parse import quote, unquote_to_bytes

from ..asking import answers
from ..errors import SampleSkipped, SourceError
from ..images.formats import HEAD_BYTES, IMAGE_SUFFIXES, looks_like_image
from ..ledger import BEYOND_LIMIT, HIDDEN, Counts, SourceCounts
from ..records import Entry, ImageFile, Notes, Part, Sample, SampleRef
from .annotations import FolderAnnotations, digest
from .base import NOTES_OPTIONS, SourceOptions
from .beside import FieldSearch
from .local_files import read_whole
from .trees import Folder, Tree, is_inside

_UNDECODABLE = "file:"  # stands before the percent-encoded form of a name that isn't UTF-8


_LAST_TIME = 2**63 - 1  # nanoseconds since 1970 that 64 bits hold: the year 2262


class FolderSource:
    """Images of a folder tree. See ``Source`` for the contract."""

    entries_per_part: int | None = None
    kind: str = "a folder of images"
    notes_apart: bool = True
    honours: frozenset[str] = frozenset((*NOTES_OPTIONS, "delimiter", "any_suffix"))

    def __init__(self, tree: Tree, options: SourceOptions) -> None:
        self.uri = tree.uri
        self._tree = tree
        self._options = options
        self._annotations = FolderAnnotations(tree, options)
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
        for entry in self._images(counts):
            is_cut = counts.images == limit
            if is_cut:
                break
            counts.images += 1
            if not search.is_over:
                with suppress(SampleSkipped):  # broken JSON
                    search.look_at(self._annotations.fields(location_to_path(entry.location)))
            yield entry
        if not counts.images:
            raise SourceError(_no_images(self._tree.shown, counts))
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
        self._tree.forget()
        self._annotations.adopt(found)

    def counts(self) -> SourceCounts:
        return SourceCounts(listed=self._counts)

    def notes_stamp(self, entries: Iterable[Entry]) -> str:
        """Changes with the files beside the part's images, rows about them, and options that say how to read these."""
        if self._annotations.is_empty:
            return self._annotations.options_stamp()
        return digest([self._annotations.options_stamp(), *answers(self._stamp, entries)])

    def read(self, part: Part) -> Iterator[SampleRef]:
        for entry in part.entries:
            load, open_image, notes = (
                partial(self._load, entry),
                partial(self._open, entry),
                partial(self._notes, entry),
            )
            yield SampleRef(entry.key, entry.location, load, open_image, notes, file=self._file(entry))

    def _stamp(self, entry: Entry) -> str:
        return f"{entry.key} {self._annotations.stamp(location_to_path(entry.location))}"

    def _images(self, counts: Counts) -> Iterator[Entry]:
        """Each image. Everything else is noticed or counted, all of a folder before its first image."""
        for folder in self._tree.walk():
            images, others = told_apart(self._tree, folder, any_suffix=self._options.any_suffix)
            for kind, number in folder.left_out.items():
                counts.ignore(kind, number)
            for hidden in folder.hidden_folders:
                counts.ignore(HIDDEN, self._tree.count_files(folder.prefix + hidden))
            counts.found += len(images)
            self._annotations.notice(folder.prefix, images, others, counts)
            for name, stat in zip(images, self._tree.stats(folder.prefix, images), strict=True):
                # What can't be asked about, as a link that leads nowhere, is listed all the same: it gets its row.
                num_bytes, mtime_ns = stat or (-1, -1)
                location = path_to_location(folder.prefix + name)
                yield Entry(_key(location), location, num_bytes, time_in_64_bits(mtime_ns))

    def _open(self, entry: Entry) -> BinaryIO:
        return self._tree.open(self._name(entry), self._max_bytes, entry.num_bytes)

    def _file(self, entry: Entry) -> ImageFile | None:
        """The image's file, if it is one of this machine; None for one outside of this folder, which is refused."""
        name = location_to_path(entry.location)
        path = self._tree.local_path(name) if is_inside(name) else None
        return None if path is None else ImageFile(path, entry.location, self._max_bytes)

    def _name(self, entry: Entry) -> str:
        """Which file an entry is: one of this folder, whatever a plan says."""
        name = location_to_path(entry.location)
        if not is_inside(name):
            raise SampleSkipped("missing", f"{entry.location} is not in the folder {self.uri}")
        return name

    def _notes(self, entry: Entry) -> Notes:
        return self._annotations.of(self._name(entry))

    def _load(self, entry: Entry) -> Sample:
        with self._open(entry) as file:
            data = read_whole(file, entry.location, self._max_bytes)
        notes = self._notes(entry)
        return Sample(entry.key, data, entry.location, notes.caption, notes.label, notes.attributes)


def holds_images(tree: Tree, folder: Folder, *, any_suffix: bool = False) -> bool:
    """Whether there is any image in one folder of a tree, which is looked at no further than that takes."""
    if any(map(_has_image_suffix, folder.files)):
        return True
    if not any_suffix:
        return False
    return any(map(looks_like_image, tree.heads((folder.prefix + name for name in folder.files), HEAD_BYTES)))


def told_apart(tree: Tree, folder: Folder, *, any_suffix: bool) -> tuple[list[str], list[str]]:
    """The names of the images of one folder, and of its other files. Where it is asked for, what has no known suffix
    is told by its first bytes; one that can't be read is taken for no image."""
    images: list[str] = []
    others: list[str] = []
    for name in folder.files:
        (images if _has_image_suffix(name) else others).append(name)
    if any_suffix and others:
        heads = tree.heads([folder.prefix + name for name in others], HEAD_BYTES)
        found = {name for name, head in zip(others, heads, strict=True) if looks_like_image(head)}
        images = [name for name in folder.files if name in found or _has_image_suffix(name)]
        others = [name for name in others if name not in found]
    return images, others


def _no_images(shown: str, counts: Counts) -> str:
    kinds = " ".join(sorted(IMAGE_SUFFIXES))
    there = {**counts.ignored}
    if counts.notes + counts.strays:
        there["captions and the like"] = counts.notes + counts.strays
    found = ", ".join(f"{number} {kind}" for kind, number in sorted(there.items(), key=lambda item: -item[1])[:8])
    return (
        f"No images found in {shown} (looked for {kinds}, in subfolders too); found "
        f"{found or 'nothing'}. Images of other names are found by their content with `any_suffix`."
    )


def _has_image_suffix(name: str) -> bool:
    return _key(name) is not name


def _key(location: str) -> str:
    """The location without the suffix of an image; another suffix is a part of the name."""
    stem, _, suffix = location.rpartition(".")
    return stem if _is_of_images(suffix) and stem and not stem.endswith("/") else location


@lru_cache(1024)  # a listing asks for each of millions of names, and they end alike
def _is_of_images(suffix: str) -> bool:
    return f".{suffix.lower()}" in IMAGE_SUFFIXES


def time_in_64_bits(time_ns: int) -> int:
    """The time, or the nearest that 64 bits hold: some file systems and archives know the year 2300."""
    if -_LAST_TIME <= time_ns <= _LAST_TIME:
        return time_ns
    return max(-_LAST_TIME, min(_LAST_TIME, time_ns))


def path_to_location(name: str) -> str:
    """A relative path as UTF-8 text: as it is, or percent-encoded behind "file:" where its bytes aren't UTF-8."""
    if not name.isascii():
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
