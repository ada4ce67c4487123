"""Which entry of the source belongs to which part: fixed at the first run, grown by later ones.

A part, once planned, keeps its entries whatever else happens to the source, so that resuming depends neither on the
listing order nor on the number of processes. Knows nothing of images, tensors or committed parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import CacheError, SourceError, one_line
from ..files import replace_atomically
from ..records import FORMAT_VERSION, Entry, Origin, Part
from ..text import parse_json
from .shape import check_shape
from .tables import read_table

PLAN_NAME = "plan.parquet"
LISTING = pa.schema(
    [
        ("key", pa.string()),
        ("location", pa.string()),
        ("num_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("max_samples", pa.int64()),
    ]
)
_SCHEMA = LISTING.insert(0, pa.field("part", pa.int32()))
_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Changes:
    """What a new listing brings against the plan: counts of entries."""

    new: int
    changed: int
    vanished: int
    gone: frozenset[str] = frozenset()  # keys of the vanished ones


@dataclass(frozen=True)
class Plan:
    """The table of entries, sorted by part, and the recipe and source it was made for."""

    table: pa.Table
    recipe: Mapping[str, Any]
    origin: Origin

    @property
    def num_entries(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def _numbers(self) -> NDArray[np.int32]:
        numbers: NDArray[np.int32] = self.table["part"].to_numpy()
        return numbers

    @cached_property
    def part_numbers(self) -> list[int]:
        """The number of every part, ascending."""
        return [int(number) for number in np.unique(self._numbers)]

    @property
    def num_parts(self) -> int:
        return len(self.part_numbers)

    def part(self, number: int) -> Part:
        """One part. Entries are turned into objects here, so that only the parts in hand take memory."""
        start, stop = np.searchsorted(self._numbers, [number, number + 1])
        rows = self.table.slice(start, stop - start).drop_columns(["part"]).to_pylist()
        return Part(number, tuple(Entry(**row) for row in rows))

    def parts(self) -> Iterable[Part]:
        """Every part in order."""
        return map(self.part, self.part_numbers)

    def count_entries(self, numbers: Sequence[int]) -> int:
        """Entries of these parts together."""
        return int(np.isin(self._numbers, numbers).sum())

    def largest_first(self, numbers: Sequence[int]) -> list[int]:
        """The parts by descending bytes, so that the last ones to be taken are small; equal ones in order."""
        found, places = np.unique(self._numbers, return_inverse=True)
        sums = np.bincount(places, np.maximum(self.table["num_bytes"].to_numpy(), 0))
        sizes = dict(zip(found.tolist(), sums.tolist(), strict=True))
        return sorted(numbers, key=lambda number: -sizes[number])

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
        table = self.table.replace_schema_metadata(metadata)
        with replace_atomically(folder / PLAN_NAME) as file:
            pq.write_table(table, file, compression="zstd", row_group_size=_CHUNK)


def load_plan(folder: Path) -> Plan | None:
    """The folder's plan, or None where there is none yet. Raises CacheError when it can't be read."""
    path = folder / PLAN_NAME
    if not path.exists():
        return None
    try:
        table = read_table(path)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        version = metadata["dcae_cache.version"]
        text = metadata["dcae_cache.recipe"]
        if metadata.get("dcae_cache.recipe_sha256") not in (None, hashlib.sha256(text.encode()).hexdigest()):
            raise ValueError("its recipe is not the one that was written")
        recipe = parse_json(text)
        check_shape(recipe, {}, "its recipe")
        options = parse_json(metadata.get("dcae_cache.source_options", "{}"))
        check_shape(options, {}, "its options")
        origin = Origin(metadata["dcae_cache.source"], options)
        if "max_samples" not in table.column_names:  # of a release that hadn't it yet
            table = table.append_column("max_samples", pa.nulls(table.num_rows, pa.int64()))
        table = table.replace_schema_metadata(None).select(_SCHEMA.names).cast(_SCHEMA)
        if table.num_rows and (table["part"].null_count or pc.min(table["part"]).as_py() < 0):
            raise ValueError("it numbers parts below 0")
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise CacheError(
            f"{path} can't be read as a plan ({one_line(error)}). Restore it from a copy, or encode into another "
            "folder."
        ) from error
    if version != str(FORMAT_VERSION):
        raise CacheError(f"{path} is of version {version}; this release reads version {FORMAT_VERSION}.")
    return Plan(table, recipe, origin)


class PlanFile:
    """The parts of a saved plan one at a time, for a process that makes some of them: the rest is never read."""

    def __init__(self, folder: Path) -> None:
        try:
            self._file = pq.ParquetFile(folder / PLAN_NAME)
        except (pa.ArrowException, OSError) as error:
            raise CacheError(f"{folder / PLAN_NAME} can't be read as a plan ({one_line(error)}).") from error
        column = self._file.schema_arrow.get_field_index("part")
        groups = [self._file.metadata.row_group(i).column(column) for i in range(self._file.num_row_groups)]
        self._ranges = [(group.statistics.min, group.statistics.max) for group in groups]
        self._read = lru_cache(2)(self._file.read_row_group)

    def part(self, number: int) -> Part:
        tables = [self._read(i) for i, (first, last) in enumerate(self._ranges) if first <= number <= last]
        table = pa.concat_tables(tables).replace_schema_metadata(None)
        return Plan(table, {}, Origin("")).part(number)


def list_entries(entries: Iterable[Entry]) -> pa.Table:
    """The listing as a table. Raises SourceError when two entries have the same key."""
    batches, rows = [], []
    for entry in entries:
        rows.append((entry.key, entry.location, entry.num_bytes, entry.mtime_ns, entry.max_samples))
        if len(rows) == _CHUNK:
            batches.append(_to_batch(rows))
            rows = []
    batches.append(_to_batch(rows))
    table = pa.Table.from_batches(batches, LISTING)
    _refuse_duplicates(table)
    return table


def make_plan(listing: pa.Table, recipe: Mapping[str, Any], origin: Origin, part_size: int) -> Plan:
    """A first plan: runs of ``part_size`` entries in listing order."""
    return Plan(_numbered(listing, 0, part_size), recipe, origin)


def grow_plan(plan: Plan, listing: pa.Table, part_size: int, *, prune: bool = False) -> tuple[Plan, Changes]:
    """The plan with the listing's new entries in new parts at its end, and changed entries' sizes and times renewed.

    Entries that vanished keep their place, unless ``prune`` drops them. Raises SourceError when no planned entry is
    left in the source at all.
    """
    is_new = pc.invert(pc.is_in(listing["key"], value_set=plan.table["key"].combine_chunks()))
    new = listing.filter(is_new)
    where = pc.index_in(plan.table["key"], value_set=listing["key"].combine_chunks())
    vanished = int(where.null_count)
    if vanished == plan.num_entries and plan.num_entries:
        raise SourceError(
            f"None of the {plan.num_entries} planned samples is in this source. The cache was made from "
            f"{plan.origin.uri}: give that source, or another `out`."
        )
    renewed = plan.table
    found = listing.take(where)
    is_changed = np.zeros(plan.num_entries, dtype=bool)
    for column in ("location", "num_bytes", "mtime_ns"):
        old, now = plan.table[column], pc.coalesce(found[column], plan.table[column])
        is_changed |= pc.not_equal(old, now).to_numpy(zero_copy_only=False)
        renewed = renewed.set_column(_SCHEMA.get_field_index(column), _SCHEMA.field(column), now)
    wanted = _more_samples(plan.table["max_samples"], found["max_samples"], where)
    is_changed |= pc.not_equal(pc.fill_null(plan.table["max_samples"], -1), pc.fill_null(wanted, -1)).to_numpy(
        zero_copy_only=False
    )
    renewed = renewed.set_column(_SCHEMA.get_field_index("max_samples"), _SCHEMA.field("max_samples"), wanted)
    first_free = int(pc.max(plan.table["part"]).as_py()) + 1 if plan.num_entries else 0
    is_gone = pc.is_null(where)
    gone = frozenset(plan.table["key"].filter(is_gone).to_pylist())
    if prune:
        renewed = renewed.filter(pc.invert(is_gone))
    table = pa.concat_tables([renewed, _numbered(new, first_free, part_size)]).combine_chunks()
    changes = Changes(new.num_rows, int(is_changed.sum()), vanished, gone)
    return Plan(table, plan.recipe, plan.origin), changes


def _more_samples(old: pa.ChunkedArray, now: pa.ChunkedArray, where: pa.ChunkedArray) -> pa.ChunkedArray:
    """The larger of two limits on an entry's samples, None being the largest: a lower limit than last time takes
    nothing away. ``where`` is None for entries that aren't in the source now."""
    largest = pc.max_element_wise(old, now, skip_nulls=False)
    return pc.if_else(pc.is_null(where), old, largest)


def entries_digest(part: Part) -> str:
    """sha256 over the part's entries, sizes and times included: a committed part states the digest it was made for."""
    digest = hashlib.sha256()
    for entry in part.entries:
        values: list[str | int] = [entry.key, entry.location, entry.num_bytes, entry.mtime_ns]
        if entry.max_samples is not None:
            values.append(entry.max_samples)
        digest.update(json.dumps(values).encode())
    return digest.hexdigest()


def _to_batch(rows: list[tuple[str, str, int, int, int | None]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(LISTING)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, LISTING, strict=True)], schema=LISTING
    )


def _numbered(listing: pa.Table, first: int, part_size: int) -> pa.Table:
    numbers = np.arange(listing.num_rows, dtype=np.int32) // part_size + first
    return listing.add_column(0, _SCHEMA.field("part"), pa.array(numbers, pa.int32()))


def _refuse_duplicates(listing: pa.Table) -> None:
    if pc.count_distinct(listing["key"]).as_py() == listing.num_rows:
        return
    counts = pc.value_counts(listing["key"])
    key = next(item["values"] for item in counts.to_pylist() if item["counts"] > 1)
    places = listing.filter(pc.equal(listing["key"], key))["location"].to_pylist()
    raise SourceError(
        f"Two samples have the key {key!r}: {places[0]} and {places[1]}. Keys are paths without their suffix and must "
        "be unique; rename one of the two."
    )
