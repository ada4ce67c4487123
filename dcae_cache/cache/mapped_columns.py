"""Values of any lines of a memory-mapped Arrow file, several columns at a time.

Arrow's own look-ups take tens of microseconds a column. Here columns of one type are read together, by addresses that
follow from where the file's buffers begin. Knows nothing of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from mmap import mmap
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_TEXT = pa.large_string()
_NONE = -1
Places = NDArray[np.int64]  # [column, record batch]: where a buffer begins in the file; _NONE: there is none


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    """Columns of one type: the file as values of that type, which of them begins each column's part of a batch, and
    where the bits begin that tell which are missing."""

    names: tuple[str, ...]
    values: NDArray[Any]
    firsts: Places
    valid: Places
    may_miss: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Texts:
    """Columns of text: which word of the file begins the ends of each column's texts, and where the texts begin."""

    names: tuple[str, ...]
    ends: Places
    data: Places


class MappedColumns:
    """The columns of text (large_string) and whole numbers of a file of record batches, which all but the last have
    ``rows_per_batch`` lines. ``file``: the whole of it, that the batches lie in."""

    def __init__(self, batches: Sequence[pa.RecordBatch], file: mmap, rows_per_batch: int) -> None:
        self._batches, self._file, self._rows_per_batch = batches, file, rows_per_batch
        self._bytes = self._file_as(np.uint8)
        self._words = self._file_as(np.int64)
        self._laid_out = lru_cache(self._lay_out)

    def take(self, names: tuple[str, ...], numbers: NDArray[np.int64]) -> Mapping[str, list[str] | NDArray[Any]]:
        """Values of these lines: text as lists (missing: ""), numbers as arrays of int64 or uint64 (missing: -1)."""
        batch, line = np.divmod(numbers, self._rows_per_batch)
        found: dict[str, list[str] | NDArray[Any]] = {}
        for columns in self._laid_out(names):
            if isinstance(columns, _Texts):
                found.update(self._texts(columns, batch, line))
            else:
                found.update(self._numbers(columns, batch, line))
        return found

    def _texts(self, columns: _Texts, batch: NDArray[np.int64], line: NDArray[np.int64]) -> dict[str, list[str]]:
        file, count = self._file, len(batch)
        words = (columns.ends.take(batch, 1) + line).ravel()
        data = columns.data.take(batch, 1).ravel()
        starts, ends = data + self._words.take(words), data + self._words.take(words + 1)
        self._fetch(starts, ends)
        texts = [file[a:b].decode() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        return {name: texts[i * count : (i + 1) * count] for i, name in enumerate(columns.names)}

    def _fetch(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Look at both ends of all texts at once: memory answers many questions in the time of one, and the loop that
        makes strings would ask one after another."""
        self._bytes.take(starts)
        self._bytes.take(ends - 1)

    def _numbers(
        self, columns: _Numbers, batch: NDArray[np.int64], line: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        values = columns.values.take(columns.firsts.take(batch, 1) + line)
        if columns.may_miss:
            valid = columns.valid.take(batch, 1)
            bits = self._bytes.take(np.where(valid != _NONE, valid + line // 8, 0)) >> (line % 8).astype(np.uint8) & 1
            values[(valid != _NONE) & (bits == 0)] = -1
        if values.dtype == np.int32:
            values = values.astype(np.int64)
        return dict(zip(columns.names, values, strict=True))

    def _lay_out(self, names: tuple[str, ...]) -> list[_Numbers | _Texts]:
        """The columns by type."""
        schema = self._batches[0].schema if self._batches else pa.schema([])
        by_type: dict[pa.DataType, list[str]] = {}
        for name in dict.fromkeys(names):
            by_type.setdefault(schema.field(name).type, []).append(name)
        return [
            self._texts_of(group) if kind == _TEXT else self._numbers_of(group, kind)
            for kind, group in by_type.items()
        ]

    def _texts_of(self, names: Sequence[str]) -> _Texts:
        return _Texts(tuple(names), self._begins(names, 1) // self._words.itemsize, self._begins(names, 2))

    def _numbers_of(self, names: Sequence[str], kind: pa.DataType) -> _Numbers:
        values, valid = self._file_as(kind.to_pandas_dtype()), self._begins(names, 0)
        firsts = self._begins(names, 1) // values.itemsize
        return _Numbers(tuple(names), values, firsts, valid, may_miss=bool((valid != _NONE).any()))

    def _begins(self, names: Sequence[str], which: int) -> Places:
        """Where each batch's buffer of that number begins, of each column."""
        buffers = [[batch.column(name).buffers()[which] for batch in self._batches] for name in names]
        start = pa.py_buffer(self._file).address
        return np.array(
            [[buffer.address - start if buffer else _NONE for buffer in column] for column in buffers], np.int64
        )

    def _file_as(self, dtype: Any) -> NDArray[Any]:
        return np.frombuffer(self._file, dtype, count=len(self._file) // np.dtype(dtype).itemsize)
