"""What the pipeline asks of a source of images. Knows nothing of tensors, buckets or caches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

from ..errors import SampleSkipped, UsageError
from ..ledger import SourceCounts
from ..records import Entry, Part, SampleRef
from ..remote import DEFAULT_USER_AGENT
from ..text import human_bytes
from .texts import check_encoding

DEFAULT_MAX_BYTES = 2**28  # of an encoded image: at 178 million pixels even a PNG of noise is hardly larger
DEFAULT_TIMEOUT = 300.0  # seconds for one URL, however often it is tried


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
    ``caption_lines``: each line of such a file is a caption of its own.
    ``caption_encoding``: of captions, metadata files and tables that are neither UTF-8 nor say what they are.
    ``key``: "shard" puts the tar's stem before the keys, for tars whose keys are unique in themselves only.
    ``key_split``: the dot that ends the key in a tar member's name, "first" or "last"; None: see tar_groups.py.
    ``delimiter``: what stands between the cells of a CSV; None: found out by its first line.
    ``table``: of a folder, the file in it that names its images.
    ``max_bytes``: of one encoded image with what lies beside it; larger ones are skipped unread.
    ``url_timeout``: seconds for the whole of one URL, however often it is tried. ``user_agent``: told to servers.
    """

    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    split: str | None = None
    streaming: bool = False
    allow_pipe: bool = False
    any_suffix: bool = False
    caption_extension: str | None = None
    caption_lines: bool = False
    caption_encoding: str | None = None
    key: Literal["shard"] | None = None
    key_split: Literal["first", "last"] | None = None
    delimiter: str | None = None
    table: str | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    url_timeout: float = DEFAULT_TIMEOUT
    user_agent: str = DEFAULT_USER_AGENT

    def __post_init__(self) -> None:
        if self.caption_encoding is not None:
            check_encoding(self.caption_encoding)
        if self.max_bytes < 1:
            raise UsageError(f"`max_bytes` must be at least 1, not {self.max_bytes}.")
        if not self.url_timeout > 0:
            raise UsageError(f"`url_timeout` must be above 0 seconds, not {self.url_timeout}.")
        if not self.user_agent.isascii() or not self.user_agent.isprintable() or not self.user_agent:
            raise UsageError(f"`user_agent` is a line of ASCII text, not {self.user_agent!r}.")

    def to_json(self) -> dict[str, Any]:
        """The options that say how to read the source and differ from their defaults: enough to open it again."""
        default = asdict(SourceOptions())
        values = asdict(self).items()
        return {name: value for name, value in values if value != default[name] and name not in _ALLOWANCES}

    @staticmethod
    def from_json(values: Mapping[str, Any], allowed: SourceOptions | None = None) -> SourceOptions:
        """The inverse of ``to_json``. What a person allows is that of ``allowed``, whatever ``values`` say, and names
        that this release doesn't know are passed over."""
        known = {field.name for field in fields(SourceOptions)} - _ALLOWANCES
        allowed = allowed or SourceOptions()
        allowances = {name: getattr(allowed, name) for name in _ALLOWANCES}
        return SourceOptions(**{name: value for name, value in values.items() if name in known}, **allowances)


# What a person allows for one run. None of it is written down, and nothing that is written down grants it.
_ALLOWANCES = frozenset({"allow_pipe", "max_bytes", "url_timeout", "user_agent"})


def too_large(what: str, num_bytes: int | None, max_bytes: int) -> SampleSkipped:
    """The skip of what takes more bytes than are allowed; ``num_bytes`` None: how many more is not known."""
    size = f"has {human_bytes(num_bytes)}" if num_bytes is not None else "is larger"
    return SampleSkipped("too_large", f"{what} {size}; `max_bytes` allows {human_bytes(max_bytes)}")


# What may be said differently without another image, key or order: it only changes captions, labels and attributes.
NOTES_OPTIONS = ("caption_column", "label_column", "caption_extension", "caption_lines", "caption_encoding")


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

    def notes_stamp(self, entries: Iterable[Entry]) -> str:
        """What tells changed captions, labels or attributes of a part whose entries haven't changed: these, which are
        read only where they matter."""
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

    def notes_stamp(self, entries: Iterable[Entry]) -> str:
        return options_stamp(self._options)

    def found(self) -> dict[str, Any]:
        return {}

    def adopt(self, found: Mapping[str, Any]) -> None:
        pass


def options_stamp(options: SourceOptions) -> str:
    """sha256 over how captions and labels are found."""
    return hashlib.sha256(json.dumps([getattr(options, name) for name in NOTES_OPTIONS]).encode()).hexdigest()


DAMAGED = "damaged"  # the reason of the row that records where an input file broke off
