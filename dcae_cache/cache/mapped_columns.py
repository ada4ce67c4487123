"""Values of any lines of a memory-mapped Arrow file, several columns at a time.

Arrow's own look-ups take tens of microseconds a column. Here columns of one type are read together, by addresses that
follow from where the file's buffers begin, and out of a packed column where there is one. Knows nothing of what the
columns mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from mmap import mmap
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .column_groups import Found, Group, MappedBatches, NumberColumns, PackedNumbers, PackedTexts, TextColumns
from .packed import columns_in

_TEXT = pa.large_string()


class MappedColumns:
    """The columns of text (large_string) and whole numbers of a file of record batches, which all but the last have
    ``rows_per_batch`` lines. ``file``: the whole of it, that the batches lie in."""

    def __init__(self, batches: Sequence[pa.RecordBatch], file: mmap, rows_per_batch: int) -> None:
        self._schema = batches[0].schema if batches else pa.schema([])
        self._mapped, self._rows_per_batch = MappedBatches(batches, file), rows_per_batch
        self._groups = lru_cache(self._groups_of)

    def take(self, names: tuple[str, ...], numbers: NDArray[np.int64]) -> Mapping[str, list[str] | NDArray[Any]]:
        """Values of these lines: text as lists (missing: ""), numbers as arrays of int64 or uint64 (missing: -1)."""
        batch, line = np.divmod(numbers, self._rows_per_batch)
        found: Found = {}
        for group in self._groups(names):
            found.update(group.take(batch, line))
        return found

    def _groups_of(self, names: tuple[str, ...]) -> list[Group]:
        """The columns by how they are read."""
        left = dict.fromkeys(names)
        groups: list[Group] = []
        for field in self._schema:
            packed = columns_in(field)
            wanted = [name for name in left if name in packed]
            if len(wanted) > 1:  # one alone is found as fast, and with less around it, in its own column
                groups.append(self._packed(field, packed, wanted))
                left = {name: None for name in left if name not in wanted}
        return groups + self._unpacked(left)

    def _packed(self, field: pa.Field, packed: Sequence[str], wanted: Sequence[str]) -> Group:
        if pa.types.is_fixed_size_list(field.type):
            return PackedNumbers(self._mapped, field.name, packed, wanted)
        return PackedTexts(self._mapped, field.name, packed, wanted)

    def _unpacked(self, names: Iterable[str]) -> list[Group]:
        by_type: dict[pa.DataType, list[str]] = {}
        for name in names:
            by_type.setdefault(self._schema.field(name).type, []).append(name)
        return [
            TextColumns(self._mapped, group) if kind == _TEXT else NumberColumns(self._mapped, group, kind)
            for kind, group in by_type.items()
        ]
