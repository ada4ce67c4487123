"""The rows of a CSV, JSONL or parquet table, each found again by its number: memory doesn't grow with the table.

Knows nothing of images.
"""

from __future__ import annotations

import codecs
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import lru_cache
from itertools import islice
from threading import Lock
from typing import Any, BinaryIO, Protocol

import pyarrow.parquet as pq

from ..errors import SourceError
from ..urls import is_url
from .base import SourceOptions
from .delimited import find_delimiter, read_cells
from .metadata_files import json_object
from .table_files import TableFile, suffix_of, table_file
from .texts import decode_text

MAX_LINE_BYTES = 2**26

_OPEN_GROUPS = 2


class Rows(Protocol):
    """All rows in order, or one by its number from 0. ``row`` may be called on any thread."""

    columns: list[str]

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def row(self, number: int) -> dict[str, Any]: ...


def open_rows(place: str, options: SourceOptions) -> Rows:
    """The rows of a table by path or URL. Raises SourceError, with the line, for what can't be parsed, and whatever
    opening the file raises."""
    kind = suffix_of(place)
    if kind == ".parquet" and not is_url(place):
        return ParquetRows(place)
    file = table_file(place, options)
    if kind == ".parquet":
        return ParquetRows(file.open())
    return DelimitedRows(file, kind, options) if kind in (".csv", ".tsv") else JsonRows(file, options)


class ParquetRows:
    """Row groups are read when asked for; two are kept."""

    def __init__(self, path: str | BinaryIO) -> None:
        self._file = pq.ParquetFile(path)
        self.columns = list(self._file.schema_arrow.names)
        self._starts = array("q", [0])
        for number in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(number).num_rows)
        self._group = lru_cache(_OPEN_GROUPS)(self._file.read_row_group)
        self._lock = Lock()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._file.iter_batches(8192):
            yield from batch.to_pylist()

    def row(self, number: int) -> dict[str, Any]:
        group = bisect_right(self._starts, number) - 1
        with self._lock:
            table = self._group(group)
        values: list[dict[str, Any]] = table.slice(number - self._starts[group], 1).to_pylist()
        return values[0]


class JsonRows:
    """An object a line, blank lines left out. Of every row the place in the file is kept, eight bytes each."""

    def __init__(self, table: TableFile, options: SourceOptions) -> None:
        self._table, self._path, self._encoding = table, table.name, options.caption_encoding
        self._places = array("q")
        first: str | None = None
        for place, _, line in self._records(0):
            first = line if first is None else first
            self._places.append(place)
        self.columns = [] if first is None else list(json_object(first, f"{table.name}, line 1"))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _, number, line in self._records(0):
            yield json_object(line, f"{self._path}, line {number}")

    def row(self, number: int) -> dict[str, Any]:
        with closing(self._records(self._places[number])) as records:
            return json_object(next(records)[2], f"{self._path}, row {number + 1}")

    def _records(self, start: int) -> Generator[tuple[int, int, str]]:
        """(place, line number, text) of each line that isn't blank, from a place on."""
        with self._table.open() as file:
            file.seek(start)
            lines = PlacedLines(self._path, file, start, self._encoding)
            yield from ((lines.last, lines.line, line) for line in lines if line.strip())


class DelimitedRows:
    """CSV and TSV; the first row names the columns. Of every row the place in the file is kept, eight bytes each."""

    def __init__(self, table: TableFile, suffix: str, options: SourceOptions) -> None:
        self._table, self._path, self._encoding = table, table.name, options.caption_encoding
        with table.open() as file:
            header = next(iter(PlacedLines(table.name, file, 0, self._encoding)), "")
        self._delimiter = find_delimiter(header, suffix, options.delimiter)
        self._places = array("q")
        self.columns: list[str] = []
        for place, cells in self._records(0, None):
            if self.columns:
                self._places.append(place)
            self.columns = self.columns or cells

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from (self._values(cells) for _, cells in islice(self._records(0, None), 1, None))

    def row(self, number: int) -> dict[str, Any]:
        with closing(self._records(self._places[number], len(self.columns))) as records:
            return self._values(next(records)[1])

    def _values(self, cells: list[str]) -> dict[str, Any]:
        return {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell != ""}

    def _records(self, start: int, width: int | None) -> Generator[tuple[int, list[str]]]:
        with self._table.open() as file:
            file.seek(start)
            lines = PlacedLines(self._path, file, start, self._encoding)
            place = lines.next
            for cells in read_cells(self._path, lines, self._delimiter, width):
                yield place, cells
                place = lines.next


class PlacedLines:
    """The lines of a file from where it stands. ``last`` is where the line just given begins, ``next`` where it ends,
    ``line`` its number, from 1 where reading began."""

    def __init__(self, path: str, file: BinaryIO, start: int, encoding: str | None) -> None:
        self._path, self._file, self._encoding = path, file, encoding
        self.last = self.next = start
        self.line = 0

    def __iter__(self) -> PlacedLines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise SourceError(f"{self._path}, at byte {self.next}: a line without end. Check that it is a table.")
        if not line:
            raise StopIteration
        self.last, self.next = self.next, self.next + len(line)
        self.line += 1
        is_wide = self.last == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = None if is_wide else decode_text(line, self._encoding)
        if text is None:
            what = "UTF-16" if is_wide else "no UTF-8, and says not what it is"
            raise SourceError(
                f"{self._path}, line {self.line}: it is {what}. Save the table as UTF-8, or name the encoding with "
                "`caption_encoding`."
            )
        return text
