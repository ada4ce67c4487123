"""A CSV, JSONL or parquet table with a column of image paths or URLs, and captions, labels and whatever else beside.

Rows are read again where they are needed, by their place in the file: memory doesn't grow with the table. Knows
nothing of pixels.
"""

from __future__ import annotations

import csv
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import lru_cache, partial
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SampleSkipped, SourceError, one_line
from ..records import Entry, Part, Sample, SampleRef
from .base import NothingFound, SourceOptions, stamp_of
from .fields import notes_of
from .remote import is_url, open_file

IMAGE_NAMES = (
    "image",
    "image_path",
    "path",
    "filepath",
    "file_path",
    "file_name",
    "filename",
    "file",
    "url",
    "image_url",
)
KEY_NAMES = ("__key__", "key", "id")
_OPEN_GROUPS = 2


class _Rows(Protocol):
    columns: list[str]

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def row(self, number: int) -> dict[str, Any]: ...


class TableSource(NothingFound):
    """Rows of a table; the key is the ``key`` or ``id`` column, else the path or URL without its suffix."""

    entries_per_part: int | None = None

    def __init__(self, uri: str, options: SourceOptions) -> None:
        if is_url(uri):
            raise SourceError(f"{uri} is remote; download the table first (its images may stay where they are).")
        self.uri = os.path.abspath(uri)
        self._options = options
        self._table: _Rows | None = None

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        """A row each. Raises SourceError for a table that can't be read, has no such column or no rows."""
        rows = self._rows()
        column = image_column(rows.columns, self.uri, self._options)
        for name in (self._options.caption_column, self._options.label_column):
            if name is not None and name not in rows.columns:
                raise SourceError(f"There is no column {name} in {self.uri}; it has: {', '.join(rows.columns)}.")
        number = -1
        for number, row in enumerate(islice(rows, limit)):
            yield Entry(_key(row, column, number), str(number), -1, _version(row))
        if number < 0:
            raise SourceError(f"{self.uri} has no rows. Check the file.")

    def read(self, part: Part) -> Iterator[SampleRef]:
        rows = self._rows()
        column = image_column(rows.columns, self.uri, self._options)
        for entry in part.entries:
            load, open_image = partial(self._load, entry, rows, column), partial(self._open_entry, entry, rows, column)
            yield SampleRef(entry.key, f"{self.uri}#{entry.location}", load, open_image)

    def _load(self, entry: Entry, rows: _Rows, column: str) -> Sample:
        row = _row_of(entry, rows, column)
        with self._open(row, column) as file:
            data = file.read()
        rest = {name: value for name, value in row.items() if name != column and name not in KEY_NAMES}
        notes = notes_of(rest, self._options)
        return Sample(entry.key, data, str(row[column]), notes.caption, notes.label, notes.attributes)

    def _open_entry(self, entry: Entry, rows: _Rows, column: str) -> BinaryIO:
        return self._open(_row_of(entry, rows, column), column)

    def _open(self, row: dict[str, Any], column: str) -> BinaryIO:
        place = row.get(column)
        if not isinstance(place, str) or not place:
            raise SampleSkipped("missing", f"column {column} is empty")
        if is_url(place):
            try:
                with open_file(place) as file:
                    return BytesIO(file.read())
            except SourceError as error:
                raise SampleSkipped("unreadable", str(error)) from error
        path = Path(os.path.normpath(Path(self.uri).parent / os.path.expanduser(place)))
        try:
            if not path.is_file():
                raise SampleSkipped("missing", f"there is no file {path}")
            return path.open("rb")
        except OSError as error:
            raise SampleSkipped("unreadable", error.strerror or str(error)) from error

    def _rows(self) -> _Rows:
        if self._table is None:
            try:
                self._table = _open_table(self.uri)
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                raise SourceError(f"Can't read {self.uri}: {one_line(error)}. Mend the file.") from error
        return self._table


def image_column(columns: list[str], uri: str, options: SourceOptions) -> str:
    """The column of paths or URLs: the one named, else the first with a usual name. SourceError says what there is."""
    wanted = options.image_column
    for name in (wanted,) if wanted else IMAGE_NAMES:
        if name in columns:
            return name
    what = f"no column {wanted}" if wanted else "no column of image paths or URLs with a usual name"
    raise SourceError(f"There is {what} in {uri}; it has: {', '.join(columns)}. Choose one with `image_column`.")


def names_images(uri: str) -> bool:
    """True for one local parquet file that names its images in a text column instead of holding them."""
    try:
        schema = pq.read_schema(uri)
    except (OSError, pa.ArrowException):
        return False
    holds = any(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind) for kind in schema.types
    )
    return not holds and any(name in schema.names for name in IMAGE_NAMES)


def _key(row: dict[str, Any], column: str, number: int) -> str:
    for name in KEY_NAMES:
        if isinstance(row.get(name), str | int) and row[name] != "":
            return str(row[name])
    place = row.get(column)
    if not isinstance(place, str) or not place:
        return f"row {number}"
    return str(PurePosixPath(place.partition("?")[0] if is_url(place) else os.path.normpath(place)).with_suffix(""))


def _row_of(entry: Entry, rows: _Rows, column: str) -> dict[str, Any]:
    """The entry's row. A plan outlives its table: what is no longer there must not pass for what was."""
    number = int(entry.location)
    try:
        row = rows.row(number)
    except IndexError as error:
        raise SampleSkipped("missing", f"the table has no row {number + 1} any more") from error
    if (now := _key(row, column, number)) != entry.key:
        raise SampleSkipped("missing", f"row {number + 1} now has the key {now!r}")
    return row


def _version(row: dict[str, Any]) -> int:
    """A number that changes with the row: its images are not asked, which a table of URLs could not afford."""
    return stamp_of(json.dumps(row, sort_keys=True, default=str))


def _open_table(path: str) -> _Rows:
    if path.lower().endswith(".parquet"):
        return _Parquet(path)
    return _Lines(path, {".csv": ",", ".tsv": "\t"}.get(Path(path).suffix.lower()))


class _Parquet:
    """Row groups are read when asked for; two are kept."""

    def __init__(self, path: str) -> None:
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


class _Lines:
    """CSV (with a delimiter) or JSONL. Of every row the place in the file is kept, eight bytes each."""

    def __init__(self, path: str, delimiter: str | None) -> None:
        self._path, self._delimiter = path, delimiter
        self._places = array("q")
        self.columns: list[str] = []
        for place, record in self._records(0):
            if not self.columns:
                self.columns = record if delimiter else list(self._object(record, 0))
                if delimiter:
                    continue
            self._places.append(place)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        records = (record for _, record in self._records(0))
        for number, record in enumerate(islice(records, 1 if self._delimiter else 0, None)):
            yield self._values(record, number)

    def row(self, number: int) -> dict[str, Any]:
        with closing(self._records(self._places[number])) as records:
            return self._values(next(records)[1], number)

    def _values(self, record: Any, number: int) -> dict[str, Any]:
        if not self._delimiter:
            return self._object(record, number)
        return {name: value for name, value in zip(self.columns, record, strict=False) if value != ""}

    def _records(self, start: int) -> Generator[tuple[int, Any]]:
        """(place, record) from ``start`` on: a list of cells, or the text of a line. Blank lines are passed over."""
        with open(self._path, "rb") as file:
            file.seek(start)
            lines = _PlacedLines(file, start)
            if not self._delimiter:
                yield from ((lines.last, line) for line in lines if line.strip())
                return
            reader = csv.reader(lines, delimiter=self._delimiter)
            while True:
                place = lines.next
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    raise SourceError(f"{self._path}, at byte {place}: {error}. Mend the file.") from error
                if cells is None:
                    return
                if cells:
                    yield place, cells

    def _object(self, line: str, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{self._path}, row {number + 1}: {error}. Mend the file.") from error
        if not isinstance(value, dict):
            raise SourceError(
                f"{self._path}, row {number + 1}: expected a JSON object, found {type(value).__name__}. Mend the file."
            )
        return value


class _PlacedLines:
    """The lines of a file from where it stands. ``last`` is where the line just given begins, ``next`` where it
    ends."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self.last = self.next = start

    def __iter__(self) -> _PlacedLines:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.last, self.next = self.next, self.next + len(line)
        return line.decode("utf-8-sig" if self.last == 0 else "utf-8")
