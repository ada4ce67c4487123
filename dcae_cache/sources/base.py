"""What the pipeline asks of a source of images. Knows nothing of tensors, buckets or caches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..records import Entry, Part, SampleRef


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How to read a source: which columns or fields hold what. None means: find out by the usual names."""

    caption_column: str | None = None
    label_column: str | None = None


class Source(Protocol):
    """A listing of entries in a stable order, and the samples of any part made of such entries.

    The plan, not the source, decides which entries make a part: that way a part stays what it was when the source
    grows. ``entries_per_part`` is None where a part may hold any number of entries (files), 1 where one entry is
    many samples (an input tar).
    """

    uri: str
    entries_per_part: int | None

    def entries(self) -> Iterator[Entry]:
        """List the source without opening any image. Raises SourceError when it can't be listed or is empty."""
        ...

    def read(self, part: Part) -> Iterator[SampleRef]:
        """The part's samples, in order, each still to be loaded."""
        ...
