"""What was met in a source, counted: so that whatever was left out is said, and everything adds up.

A source counts files (of a folder) while it is listed, by one process; members (of a tar) while they are read, by
part: those counts are committed with the part, so they are right however many processes and runs made a cache. Knows
nothing of sources, tables or files on disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

HIDDEN = "hidden"  # stands for a suffix: files whose name, or a folder's above them, begins with a dot
NO_SUFFIX = "no suffix"
RESOURCE_FORK = "resource fork"  # what macOS packs beside files: ._name and __MACOSX
BEYOND_LIMIT = "beyond the limit"
_NUMBERS = ("found", "images", "notes", "strays", "unmatched", "merged", "split", "unread_captions")


@dataclass(slots=True, kw_only=True)
class Counts:
    """What one listing, or the reading of one part, met. ``found == images + notes + strays + sum(ignored)``.

    ``found``: files of a folder, members of a tar or rows of a table. ``notes``: of these, what says something of an
    image. ``strays``: captions and the like that belong to no image. ``unmatched``: rows of metadata files that name
    no image. ``merged``: rows or images that were put to one that was there already. ``first_*`` name one each.
    """

    found: int = 0
    images: int = 0
    notes: int = 0
    strays: int = 0
    first_stray: str | None = None
    ignored: Counter[str] = field(default_factory=Counter)  # by suffix
    unmatched: int = 0
    first_unmatched: str | None = None
    merged: int = 0
    first_merged: str | None = None
    split: int = 0  # samples whose names hold dots, told apart by their last one
    unread_captions: int = 0  # whose encoding isn't known: their bytes are kept

    def ignore(self, kind: str, number: int = 1) -> None:
        """Note files that were left out."""
        self.found += number
        self.ignored[kind] += number

    def stray(self, name: str) -> None:
        """Note a file that would say something of an image, were there one."""
        self.found += 1
        self.strays += 1
        self.first_stray = self.first_stray or name

    def __iadd__(self, other: Counts) -> Counts:
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("first_stray", "first_unmatched", "first_merged"):
            setattr(self, name, getattr(self, name) or getattr(other, name))
        self.ignored.update(other.ignored)
        return self

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to tell: every file is an image or belongs to one."""
        return not (self.ignored or self.strays or self.unmatched or self.merged or self.split or self.unread_captions)

    @staticmethod
    def total(all_counts: Iterable[Counts]) -> Counts:
        """All of them together."""
        total = Counts()
        for counts in all_counts:
            total += counts
        return total

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return {**values, "ignored": dict(sorted(self.ignored.items()))}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Counts:
        """The inverse of ``to_json``; other values are passed over."""
        own = {item.name: values[item.name] for item in fields(Counts) if item.name in values}
        return Counts(**{**own, "ignored": Counter(values.get("ignored", {}))})


@dataclass(slots=True, kw_only=True)
class SourceCounts:
    """What one process has met in a source: while listing it, and while reading its parts, by their number."""

    listed: Counts | None = None
    parts: dict[int, Counts] = field(default_factory=dict)

    def total(self) -> Counts:
        """Everything that was met."""
        return Counts.total([*([self.listed] if self.listed else []), *self.parts.values()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What was read of a source, and what was not. ``samples``: rows of the tables, skipped ones too."""

    counts: Counts
    samples: int
    with_caption: int
    with_label: int

    @property
    def without_caption(self) -> int:
        return self.samples - self.with_caption

    @property
    def without_label(self) -> int:
        return self.samples - self.with_label

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **self.counts.to_json(),
            "samples": self.samples,
            "with_caption": self.with_caption,
            "without_caption": self.without_caption,
            "with_label": self.with_label,
            "without_label": self.without_label,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Ledger:
        """The inverse of ``to_json``."""
        own = {name: values[name] for name in ("samples", "with_caption", "with_label")}
        return Ledger(counts=Counts.from_json(values), **own)

    def faults(self) -> list[str]:
        """What a careful reader would have to look at, each in a few words; nothing where all is in order.

        Images without a caption (or label) are a fault where others have one: where none has, none was expected.
        """
        counts = self.counts
        left_out = {kind: number for kind, number in counts.ignored.items() if kind not in (HIDDEN, BEYOND_LIMIT)}
        findings = {
            "files left out": sum(left_out.values()),
            "captions or labels that belong to no image": counts.strays,
            "rows of metadata that match no image": counts.unmatched,
            "rows merged into others": counts.merged,
            "keys cut at their last dot": counts.split,
            "captions of unknown encoding": counts.unread_captions,
            "images without a caption": self.without_caption if self.with_caption else 0,
            "images without a label": self.without_label if self.with_label else 0,
        }
        return [f"{number} {what}" for what, number in findings.items() if number]
