"""Reading a parquet table of a cache, whole or by row groups, if it can be that large at all. Knows nothing of its
columns."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import open_regular
from ..text import human_bytes

# A few kilobytes of parquet can stand for terabytes of text. Real tables take less than a hundred times their file.
_FREE_BYTES = 2**29
_TIMES_THE_FILE = 100


def read_table(path: Path) -> pa.Table:
    """The whole table. Raises ValueError where it would take far more memory than its file makes likely; FileNotFound
    and other errors of the system and of pyarrow come through."""
    file = BoundedFile(path)
    try:
        return file.read()
    finally:
        file.close()


class BoundedFile:
    """A parquet file, open until it is closed or forgotten. Reading is safe on any thread.

    Raises ValueError where its rows would take far more memory than its size makes likely, and what the system and
    pyarrow raise, when it is opened and when it is read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._handle = open_regular(path)
        weakref.finalize(self, self._handle.close)
        self._limit = _FREE_BYTES + _TIMES_THE_FILE * path.stat().st_size
        self._file = pq.ParquetFile(self._handle)
        self.schema: pa.Schema = self._file.schema_arrow
        self._groups = [self._file.metadata.row_group(number) for number in range(self._file.num_row_groups)]
        self.counts = [group.num_rows for group in self._groups]
        if sum(self.counts) > self._limit // 8:
            raise ValueError(self._refusal())
        self._texts = [field.name for field in self.schema if _is_text(field.type)]

    def close(self) -> None:
        self._handle.close()

    def read(self) -> pa.Table:
        """All rows."""
        return self._read(range(len(self._groups)))

    def group(self, number: int) -> pa.Table:
        """The rows of one group."""
        return self._read([number])

    def column(self, name: str) -> pa.ChunkedArray:
        """All values of a column that holds no texts."""
        with self._lock:
            return self._file.read(columns=[name], use_threads=False)[name]

    @cached_property
    def _by_text(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._handle, read_dictionary=self._texts)

    def _read(self, numbers: Sequence[int]) -> pa.Table:
        groups = [self._groups[number] for number in numbers]
        if _declared_bytes(groups) > self._limit:
            raise ValueError(self._refusal())
        with self._lock:
            if _most_bytes(groups) <= self._limit:
                return self._file.read_row_groups(list(numbers), use_threads=False)
            # every text once, however often it stands there
            table = self._by_text.read_row_groups(list(numbers), use_threads=False)
        if table.nbytes + sum(_spread_out(table[name]) for name in self._texts) > self._limit:
            raise ValueError(self._refusal())
        plain = [field.with_type(pa.string()) if field.name in self._texts else field for field in table.schema]
        return table.cast(pa.schema(plain, table.schema.metadata))

    def _refusal(self) -> str:
        limit = human_bytes(self._limit)
        return f"{self._path.name} says it holds more than {limit}, far more than its size makes likely"


def _declared_bytes(groups: Sequence[pq.RowGroupMetaData]) -> int:
    return sum(group.column(number).total_uncompressed_size for group in groups for number in range(group.num_columns))


def _most_bytes(groups: Sequence[pq.RowGroupMetaData]) -> int:
    """What the columns could take at most, if every value were as long as its whole column."""
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(chunk.num_values * max(8, chunk.total_uncompressed_size) for chunk in chunks)


def _spread_out(column: pa.ChunkedArray) -> int:
    """Bytes of a column of texts once every value stands by itself."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary)
        total += pc.sum(pc.take(lengths.cast(pa.int64()), chunk.indices)).as_py() or 0
    return total


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_dictionary(kind))
