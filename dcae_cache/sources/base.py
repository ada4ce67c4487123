"""What the pipeline asks of a source of images. Knows nothing of tensors, buckets or caches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from ..errors import UsageError
from ..ledger import SourceCounts
from ..records import Entry, Part, SampleRef
from .texts import check_encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How to read a source (docs/sources.md). None means: find out by the usual names.

    ``image_column``: column of a table or dataset, or suffix of a tar's members, that holds the image, its path or
    its URL.
    ``caption_column``, ``label_column``: the same for the caption and the label.
    ``split``: of a Hugging Face dataset; needed where it has several.
    ``streaming``: read a Hugging Face dataset data file by data file, without copying it to the library's cache.
    ``allow_pipe``: run the shell commands of ``pipe:`` sources. Off, because a list of tars may come from elsewhere.
    ``any_suffix``: find the images of a folder by their content, whatever their names.
    ``caption_extension``: of the files beside images (or members of tars) that hold captions, instead of .txt,
    .caption and .tags.
    ``caption_encoding``: of captions, metadata files and tables that are neither UTF-8 nor say what they are.
    ``key``: "shard" puts the tar's stem before the keys, for tars whose keys are unique in themselves only.
    ``key_split``: the dot that ends the key in a tar member's name, "first" or "last"; None: see tar_groups.py.
    ``delimiter``: what stands between the cells of a CSV; None: found out by its first line.
    ``table``: of a folder, the file in it that names its images.
    """

    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    split: str | None = None
    streaming: bool = False
    allow_pipe: bool = False
    any_suffix: bool = False
    caption_extension: str | None = None
    caption_encoding: str | None = None
    key: Literal["shard"] | None = None
    key_split: Literal["first", "last"] | None = None
    delimiter: str | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        if self.caption_encoding is not None:
            check_encoding(self.caption_encoding)

    def to_json(self) -> dict[str, Any]:
        """The options that differ from their defaults: enough to open the source again."""
        default = asdict(SourceOptions())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> SourceOptions:
        """The inverse of ``to_json``."""
        return SourceOptions(**values)


# What may be said differently without another image, key or order: it only changes captions, labels and attributes.
NOTES_OPTIONS = ("caption_column", "label_column", "caption_extension", "caption_encoding")


class Source(Protocol):
    """A listing of entries in a stable order, and the samples of any part made of such entries.

    The plan, not the source, decides which entries make a part: that way a part stays what it was when the source
    grows. ``entries_per_part`` is None where every entry is one sample, whose key is the entry's; it is 1 where an
    entry (an input tar, a data file) holds any number of samples, whose keys are known only once it is read.
    """

    uri: str
    entries_per_part: int | None

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        """List the source without opening any image; with ``limit``, no more than holds so many samples.

        Raises SourceError when it can't be listed or is empty.
        """
        ...

    def read(self, part: Part) -> Iterator[SampleRef]:
        """The part's samples, in order, each still to be loaded.

        An entry that is damaged from some place on gives the samples before the damage, then one whose ``load``
        raises SampleSkipped with the reason DAMAGED. Raises SourceError for one that can't be had at all, or not
        now: the part must then be left out, to be tried again by a later run.
        """
        ...

    def found(self) -> dict[str, Any]:
        """What listing found out beside the entries, as JSON values: with it, another process can ``read`` too."""
        ...

    def adopt(self, found: Mapping[str, Any]) -> None:
        """Take over what ``found`` of the same source gave in another process, in place of listing it."""
        ...


class ListedSource(Source, Protocol):
    """A source as ``open_source`` gives it: it also tells which options it honours, what it met, and what changed."""

    kind: str  # for messages: "a folder of images"
    notes_apart: bool  # captions may change while entries, as the plan knows them, do not
    honours: frozenset[str]  # the options that have an effect here

    def counts(self) -> SourceCounts:
        """What this process has met so far, while listing and while reading."""
        ...

    def notes_stamp(self, part: Part) -> str:
        """What tells changed captions, labels or attributes of a part whose entries haven't changed."""
        ...


def refuse_options_without_effect(source: ListedSource, options: SourceOptions) -> None:
    """Raise UsageError for an option that this kind of source can't honour: whoever gives one expects it to work."""
    for name in options.to_json():
        if name not in source.honours:
            raise UsageError(
                f"`{name}` has no effect on {source.kind} ({source.uri}). Leave it out, or give another source."
            )


class NothingFound:
    """For sources that need no listing before they are read, and whose entries change with what is said of them."""

    notes_apart: bool = False
    _options: SourceOptions

    def notes_stamp(self, part: Part) -> str:
        return options_stamp(self._options)

    def found(self) -> dict[str, Any]:
        return {}

    def adopt(self, found: Mapping[str, Any]) -> None:
        pass


def stamp_of(text: str) -> int:
    """A number that changes with ``text``, in place of a modification time where a version is told otherwise: by an
    ETag, a fingerprint, a row's values. 63 bits of its sha256, as entries hold it (``Entry.mtime_ns``)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big") >> 1


def options_stamp(options: SourceOptions) -> str:
    """sha256 over how captions and labels are found."""
    return hashlib.sha256(json.dumps([getattr(options, name) for name in NOTES_OPTIONS]).encode()).hexdigest()


DAMAGED = "damaged"  # the reason of the row that records where an input file broke off
