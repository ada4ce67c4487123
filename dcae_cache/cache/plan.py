"""Which entry of the source belongs to which part: fixed at the first run, grown by later ones (growth.py).

A part, once planned, keeps its entries whatever else happens to the source, so that resuming depends neither on the
listing order nor on the number of processes. Of a plan only the pages in hand take memory, and 4 bytes an entry. Knows
nothing of images, tensors or committed parts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import CacheError, one_line
from ..files import replace_atomically
from ..records import FORMAT_VERSION, Entry, Origin, Part
from ..text import parse_json
from .entry_digests import EntryDigests, digest_of_entries
from .listing import LISTING, Listing
from .pages import Pages
from .shape import check_shape
from .tables import BoundedFile

PLAN_NAME = "plan.parquet"
PLAN_SCHEMA = LISTING.insert(0, pa.field("part", pa.int32()))


@dataclass(frozen=True)
class Plan:
    """The entries, sorted by part, columns as in ``PLAN_SCHEMA``, and the recipe and source they were planned for."""

    pages: Pages
    recipe: Mapping[str, Any]
    origin: Origin
    known_numbers: NDArray[np.int32] | None = field(default=None, repr=False, compare=False)  # the column "part"

    @property
    def num_entries(self) -> int:
        return self.pages.num_rows

    @property
    def table(self) -> pa.Table:
        """All entries in memory."""
        return self.pages.whole()

    @cached_property
    def _numbers(self) -> NDArray[np.int32]:
        if self.known_numbers is not None:
            return self.known_numbers
        return np.concatenate([np.empty(0, np.int32), *(page["part"].to_numpy() for page in self.pages)])

    @cached_property
    def _ranges(self) -> dict[int, tuple[int, int]]:
        """Number of a part -> its first entry, and the one after its last."""
        numbers, starts = np.unique(self._numbers, return_index=True)
        stops = [*starts[1:].tolist(), self.num_entries]
        return dict(zip(numbers.tolist(), zip(starts.tolist(), stops, strict=True), strict=True))

    @cached_property
    def _digests(self) -> EntryDigests:
        return EntryDigests(self.pages)

    @cached_property
    def part_numbers(self) -> list[int]:
        """The number of every part, ascending."""
        return list(self._ranges)

    @property
    def num_parts(self) -> int:
        return len(self.part_numbers)

    def part(self, number: int) -> Part:
        """One part. Entries are turned into objects here, so that only the parts in hand take memory."""
        return Part(number, tuple(self.entries(number)))

    def entries(self, number: int) -> Iterator[Entry]:
        """The entries of a part, read only when the first is asked for."""
        rows = self.pages.rows(*self._ranges[number])
        columns = (rows[name].to_pylist() for name in LISTING.names)
        yield from map(Entry._make, zip(*columns, strict=True))

    def parts(self) -> Iterable[Part]:
        """Every part in order."""
        return map(self.part, self.part_numbers)

    def digest(self, number: int) -> str:
        """``entries_digest`` of a part, made without its entries as objects."""
        return self._digests.of(*self._ranges[number])

    def count_entries(self, numbers: Sequence[int]) -> int:
        """Entries of these parts together."""
        return sum(stop - start for start, stop in map(self._ranges.__getitem__, numbers))

    def largest_first(self, numbers: Sequence[int]) -> list[int]:
        """The parts by descending bytes, so that the last ones to be taken are small; equal ones in order."""
        sums: Counter[int] = Counter()
        for page in self.pages:
            found, places = np.unique(page["part"].to_numpy(), return_inverse=True)
            bytes_of = np.bincount(places, np.maximum(page["num_bytes"].to_numpy(), 0))
            sums.update(dict(zip(found.tolist(), bytes_of.tolist(), strict=True)))
        return sorted(numbers, key=lambda number: -sums[number])

    def read_through(self) -> None:
        """Raise CacheError where any of it can't be read."""
        for _ in self.pages:
            pass

    def save(self, folder: Path) -> None:
        """Write plan.parquet, whole or not at all."""
        recipe = json.dumps(dict(self.recipe))
        metadata = {
            "dcae_cache.format": "dcae-cache plan",
            "dcae_cache.version": str(FORMAT_VERSION),
            "dcae_cache.recipe": recipe,
            "dcae_cache.recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
            "dcae_cache.source": self.origin.uri,
            "dcae_cache.source_options": json.dumps(dict(self.origin.options), sort_keys=True),
        }
        schema = PLAN_SCHEMA.with_metadata(metadata)
        with (
            replace_atomically(folder / PLAN_NAME) as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            self.pages.write(writer)


def load_plan(folder: Path) -> Plan | None:
    """The folder's plan, or None where there is none yet. Raises CacheError when it can't be read: here, or when a
    damaged page of it is asked for."""
    path = folder / PLAN_NAME
    if not path.exists():
        return None
    try:
        file = BoundedFile(path)
        metadata = {key.decode(): value.decode() for key, value in (file.schema.metadata or {}).items()}
        version = metadata["dcae_cache.version"]
        text = metadata["dcae_cache.recipe"]
        if metadata.get("dcae_cache.recipe_sha256") not in (None, hashlib.sha256(text.encode()).hexdigest()):
            raise ValueError("its recipe is not the one that was written")
        recipe = parse_json(text)
        check_shape(recipe, {}, "its recipe")
        options = parse_json(metadata.get("dcae_cache.source_options", "{}"))
        check_shape(options, {}, "its options")
        origin = Origin(metadata["dcae_cache.source"], options)
        numbers = _part_numbers(file) if version == str(FORMAT_VERSION) else None
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise _unreadable(path, error) from error
    if version != str(FORMAT_VERSION):
        raise CacheError(f"{path} is of version {version}; this release reads version {FORMAT_VERSION}.")
    return Plan(Pages(PLAN_SCHEMA, file.counts, partial(_page, path, file)), recipe, origin, numbers)


def _part_numbers(file: BoundedFile) -> NDArray[np.int32]:
    """The number of each entry's part. Raises ValueError where that, or another column, isn't there."""
    missing = [name for name in PLAN_SCHEMA.names if name not in file.schema.names and name != "max_samples"]
    if missing:
        raise ValueError(f"it has no column {missing[0]}")
    column = file.column("part").cast(pa.int32())
    if len(column) and (column.null_count or pc.min(column).as_py() < 0):
        raise ValueError("it numbers parts below 0")
    numbers: NDArray[np.int32] = column.to_numpy()
    if np.any(numbers[1:] < numbers[:-1]):
        raise ValueError("its parts are not in order")
    return numbers


def _page(path: Path, file: BoundedFile, number: int) -> pa.Table:
    """A page of a saved plan. Raises CacheError where it is damaged."""
    try:
        table = file.group(number)
        if "max_samples" not in table.column_names:  # of a release that hadn't it yet
            table = table.append_column("max_samples", pa.nulls(table.num_rows, pa.int64()))
        return table.replace_schema_metadata(None).select(PLAN_SCHEMA.names).cast(PLAN_SCHEMA)
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CacheError:
    return CacheError(
        f"{path} can't be read as a plan ({one_line(error)}). Restore it from a copy, or encode into another folder."
    )


def make_plan(listing: Listing, recipe: Mapping[str, Any], origin: Origin, part_size: int) -> Plan:
    """A first plan: runs of ``part_size`` entries in listing order."""
    return Plan(numbered(listing, 0, part_size), recipe, origin)


def numbered(listing: Pages, first: int, part_size: int) -> Pages:
    """A listing with a number of a part for each entry, ``part_size`` entries to a number."""

    def page(number: int) -> pa.Table:
        table = listing.page(number)
        places = np.arange(table.num_rows, dtype=np.int64) + listing.offsets[number]
        numbers = pa.array(places // part_size + first, pa.int32())
        return table.add_column(0, PLAN_SCHEMA.field("part"), numbers)

    return Pages(PLAN_SCHEMA, np.diff(listing.offsets).tolist(), page)


def entries_digest(part: Part) -> str:
    """The digest of a part's entries (entry_digests.py)."""
    return digest_of_entries(part.entries)
