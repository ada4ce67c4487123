"""Rows of parquet files in a store, read forward by range requests: a block of a column at a time, whatever the file.

It stands in for the datasets library's own tables, and knows nothing of which column is the image.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SourceError, one_line
from .data_files import READ_AHEAD, DataFile, open_ranged

_FILES_AT_ONCE = 16  # that are asked for their last bytes, or for one column
_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class FileEnd:
    """What the last bytes of a parquet file say of it. ``rows`` is -1 for one that is damaged."""

    rows: int
    schema: pa.Schema | None


def file_ends(files: Sequence[DataFile], user_agent: str) -> list[FileEnd]:
    """Of each file, a request or two. Raises SourceError for one that is out of reach."""

    def end(file: DataFile) -> FileEnd:
        try:
            with open_ranged(file, user_agent) as opened:
                found = pq.ParquetFile(opened)
                return FileEnd(found.metadata.num_rows, found.schema_arrow)
        except pa.ArrowException:
            return FileEnd(-1, None)

    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="ask") as pool:
        return list(pool.map(end, files))


@dataclass(frozen=True)
class StoredParquet:
    """All rows of ``files``, of which each holds so many ``rows``. ``features``: the columns as the library calls
    them; ``schema``: the same for pyarrow, of the columns that are read. ``conversion``: how the library brings a
    table into a schema. ``user_agent``: told to web servers."""

    files: tuple[DataFile, ...]
    rows: tuple[int, ...]
    features: Mapping[str, Any]
    schema: pa.Schema
    conversion: Callable[[pa.Table, pa.Schema], pa.Table]
    user_agent: str

    def __len__(self) -> int:
        return sum(max(rows, 0) for rows in self.rows)

    @property
    def num_shards(self) -> int:
        return len(self.files)

    def select_columns(self, names: Sequence[str]) -> StoredParquet:
        """The same rows, and of each only these columns, in this order."""
        return replace(self, schema=pa.schema([self.schema.field(name) for name in names]))

    def column(self, name: str) -> pa.ChunkedArray:
        """A column whole, without a byte of the others. Raises SourceError."""
        narrow = self.select_columns([name])

        def of_file(index: int) -> pa.ChunkedArray:
            def read(opened: pq.ParquetFile) -> Iterator[pa.Table]:
                yield narrow.cast(opened.read(columns=[name], use_threads=False))

            (table,) = self._explained(index, read)
            return table.column(0)

        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="column") as pool:
            found = list(pool.map(of_file, range(len(self.files))))
        return pa.chunked_array([chunk for column in found for chunk in column.chunks], narrow.schema.field(0).type)

    def shard(self, num_shards: int, index: int) -> Iterator[pa.Table]:
        """The rows of one file, a table each. Raises SourceError where it can't be read on."""
        assert num_shards == len(self.files)
        return self._explained(index, lambda opened: _picked(opened, range(opened.metadata.num_rows), self))

    def walk(self, numbers: Iterable[int]) -> Iterator[pa.Table]:
        """The rows with these numbers, a table each, as they are read: ascending ones are read without going back.

        Raises SourceError where a file can't be read on, IndexError for a row that isn't there.
        """
        ends = self._ends
        for index, some in groupby(numbers, lambda number: bisect_right(ends, number)):
            start = ends[index] - self.rows[index]
            wanted = [number - start for number in some]
            yield from self._explained(index, partial(_picked, numbers=wanted, rows=self))

    def cast(self, table: pa.Table) -> pa.Table:
        """The columns in the types they have in all files: one that is empty in a file doesn't know its own there."""
        table = table.select(self.schema.names)
        return table if table.schema.equals(self.schema) else self.conversion(table, self.schema)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.rows))

    def _explained(self, index: int, read: Callable[[pq.ParquetFile], Iterator[pa.Table]]) -> Iterator[pa.Table]:
        """What ``read`` gives of a file; whatever it raises becomes a SourceError."""
        file = self.files[index]
        try:
            with open_ranged(file, self.user_agent) as opened:
                parquet = pq.ParquetFile(opened, buffer_size=READ_AHEAD, pre_buffer=False)
                if self.rows[index] >= 0 and parquet.metadata.num_rows != self.rows[index]:
                    raise SourceError(f"{file.place} has changed since it was listed. Run the same command again.")
                yield from read(parquet)
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise SourceError(
                f"{file.place} can't be read on: {one_line(error)}. Replace it if it is damaged, and run the same "
                "command again."
            ) from error


def _picked(opened: pq.ParquetFile, numbers: Iterable[int], rows: StoredParquet) -> Iterator[pa.Table]:
    """The rows of a file with these numbers. A row group is read from its start to the last row wanted of it."""
    metadata, names = opened.metadata, rows.schema.names
    starts = list(accumulate((metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)), initial=0))
    group, first = -1, 0
    batch: pa.Table | None = None
    batches: Iterator[pa.RecordBatch] = iter(())
    for number in numbers:
        holder = bisect_right(starts, number) - 1
        if holder != group or number < first:
            group, first, batch = holder, starts[holder], None
            batches = opened.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=names, use_threads=False)
        while batch is None or number >= first + batch.num_rows:
            first += 0 if batch is None else batch.num_rows
            found = next(batches, None)
            if found is None:
                raise pa.ArrowInvalid(f"row group {group} ends before row {number}")
            batch = rows.cast(pa.Table.from_batches([found]))
        yield batch.slice(number - first, 1)
