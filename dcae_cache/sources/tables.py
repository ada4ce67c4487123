"""A CSV, JSONL or parquet table with a column of image paths or URLs, and captions, labels and whatever else beside.

Rows are read again where they are needed, by their place in the file: memory doesn't grow with the table. Knows
nothing of pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SampleSkipped, SourceError, one_line
from ..ledger import BEYOND_LIMIT, Counts, SourceCounts
from ..records import Entry, Notes, Part, Sample, SampleRef
from ..remote import file_size_and_version
from ..text import stamp_of
from ..urls import is_url, without_secrets
from .base import NothingFound, SourceOptions, too_large
from .data_files import DataFile, folder_of, open_ranged
from .fetching import fetch, place_beside
from .fields import merge_rows, notes_of
from .table_files import suffix_of
from .table_rows import Rows, open_rows

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


class TableSource(NothingFound):
    """Rows of a table; the key is the ``key`` or ``id`` column, else the path or URL without its suffix."""

    entries_per_part: int | None = None
    kind: str = "a table"

    def __init__(self, uri: str, options: SourceOptions) -> None:
        self._asked = uri if is_url(uri) else os.path.abspath(uri)  # with what is secret in it
        self.uri = without_secrets(self._asked)
        self._options = options
        self.honours = frozenset(("image_column", "caption_column", "label_column", "table"))
        if suffix_of(uri) != ".parquet":
            self.honours |= {"caption_encoding"}
        if suffix_of(uri) in (".csv", ".tsv"):
            self.honours |= {"delimiter"}
        self._table: Rows | None = None
        self._counts: Counts | None = None

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        """A row each; rows without a key that name the same image are one entry, and their captions a list.

        Raises SourceError for a table that can't be read, has no such column or no rows.
        """
        rows = self._rows()
        column = image_column(rows.columns, self.uri, self._options)
        for name in (self._options.caption_column, self._options.label_column):
            if name is not None and name.partition(".")[0] not in rows.columns:
                raise SourceError(f"There is no column {name} in {self.uri}; it has: {', '.join(rows.columns)}.")
        counts = self._counts = Counts()
        has_keys = not set(rows.columns).isdisjoint(KEY_NAMES)
        same = {} if has_keys else _rows_of_same_image(rows, column)
        for number, row in enumerate(rows):
            numbers = same.get(row.get(column), [number])
            counts.found += 1
            if numbers[0] != number:
                counts.merged += 1
                counts.notes += 1
                counts.first_merged = counts.first_merged or str(row[column])
                continue
            if counts.images == limit:
                counts.ignored[BEYOND_LIMIT] += 1
                return
            counts.images += 1
            yield self._entry(rows, column, row, numbers)
        if not counts.found:
            raise SourceError(f"{self.uri} has no rows. Check the file.")

    def counts(self) -> SourceCounts:
        return SourceCounts(listed=self._counts)

    def read(self, part: Part) -> Iterator[SampleRef]:
        rows = self._rows()
        column = image_column(rows.columns, self.uri, self._options)
        for entry in part.entries:
            load, open_image = partial(self._load, entry, rows, column), partial(self._open_entry, entry, rows, column)
            notes = partial(self._notes, entry, rows, column)
            yield SampleRef(entry.key, f"{self.uri}#{entry.location}", load, open_image, notes)

    def _entry(self, rows: Rows, column: str, row: dict[str, Any], numbers: list[int]) -> Entry:
        """The entry of the rows with these numbers, which name one image. A local image's size and time belong to it;
        those of remote ones aren't asked for, which a table of URLs could not afford."""
        values: list[Any] = [row, *(rows.row(number) for number in numbers[1:])]
        num_bytes, place = -1, row.get(column)
        if isinstance(place, str) and place and not is_url(place) and not self._is_remote:
            try:
                info = self._path(place).stat()
                num_bytes = info.st_size
                values.append(info.st_mtime_ns)
            except OSError:  # it is skipped when it is read
                values.append(None)
        version = _version(row if len(values) == 1 else values)
        return Entry(_key(row, column, numbers[0]), "+".join(map(str, numbers)), num_bytes, version)

    def _load(self, entry: Entry, rows: Rows, column: str) -> Sample:
        row = _row_of(entry, rows, column, self._options)
        with self._open(row, column) as file:
            data = file.read()
        notes, place = self._notes_of(row, column), without_secrets(str(row[column]))
        return Sample(entry.key, data, place, notes.caption, notes.label, notes.attributes)

    def _notes(self, entry: Entry, rows: Rows, column: str) -> Notes:
        return self._notes_of(_row_of(entry, rows, column, self._options), column)

    def _notes_of(self, row: dict[str, Any], column: str) -> Notes:
        rest = {name: value for name, value in row.items() if name != column and name not in KEY_NAMES}
        return notes_of(rest, self._options)

    def _open_entry(self, entry: Entry, rows: Rows, column: str) -> BinaryIO:
        return self._open(_row_of(entry, rows, column, self._options), column)

    def _open(self, row: dict[str, Any], column: str) -> BinaryIO:
        place = row.get(column)
        if not isinstance(place, str) or not place:
            raise SampleSkipped("missing", f"column {column} is empty")
        if self._is_remote:
            place = place_beside(folder_of(self._asked), place)
        if is_url(place):
            return BytesIO(fetch(place, self._options))
        path = self._path(place)
        try:
            if not path.is_file():
                raise SampleSkipped("missing", f"there is no file {path}")
            if (size := path.stat().st_size) > self._options.max_bytes:
                raise too_large(str(path), size, self._options.max_bytes)
            return path.open("rb")
        except OSError as error:
            raise SampleSkipped("unreadable", error.strerror or str(error)) from error

    @property
    def _is_remote(self) -> bool:
        """Whether the table came from elsewhere, and may name no file of this machine."""
        return is_url(self._asked)

    def _path(self, place: str) -> Path:
        return Path(os.path.normpath(Path(self.uri).parent / os.path.expanduser(place)))

    def _rows(self) -> Rows:
        if self._table is None:
            try:
                self._table = open_rows(self._asked, self._options)
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                raise SourceError(f"Can't read {self.uri}: {one_line(error)}. Mend the file.") from error
        return self._table


def image_column(columns: list[str], uri: str, options: SourceOptions) -> str:
    """The column of paths or URLs: the one named, else the first with a usual name. SourceError says what there is."""
    wanted = options.image_column
    found = (wanted if wanted in columns else None) if wanted else usual_column(columns)
    if found is not None:
        return found
    what = f"no column {wanted}" if wanted else "no column of image paths or URLs with a usual name"
    raise SourceError(f"There is {what} in {uri}; it has: {', '.join(columns)}. Choose one with `image_column`.")


def usual_column(columns: list[str]) -> str | None:
    """The first column with a usual name, in whatever case: LAION has URL."""
    spelled = {name.lower(): name for name in reversed(columns)}
    return next((name if name in columns else spelled[name] for name in IMAGE_NAMES if name in spelled), None)


def names_images(uri: str, options: SourceOptions) -> bool:
    """True for one parquet file that names its images in a text column instead of holding them.

    Raises SourceError for one at a URL that can't be had.
    """
    try:
        if is_url(uri):
            file = DataFile(uri, *file_size_and_version(uri, options.user_agent))
            with open_ranged(file, options.user_agent) as opened:
                schema = pq.read_schema(opened)
        else:
            schema = pq.read_schema(uri)
    except (OSError, pa.ArrowException):
        return False
    holds = any(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind) for kind in schema.types
    )
    return not holds and usual_column(schema.names) is not None


def _rows_of_same_image(rows: Rows, column: str) -> dict[Any, list[int]]:
    """The numbers of the rows that name the same image, of those that several rows name. Of each row a hash is kept
    meanwhile, eight bytes."""
    hashes = np.fromiter((hash(row.get(column) or number) for number, row in enumerate(rows)), np.int64)
    values, counts = np.unique(hashes, return_counts=True)
    repeated = values[counts > 1]
    found: dict[Any, list[int]] = {}
    for number in np.flatnonzero(np.isin(hashes, repeated)).tolist() if len(repeated) else ():
        place = rows.row(number).get(column)
        if place:
            found.setdefault(place, []).append(number)
    return found


def _key(row: dict[str, Any], column: str, number: int) -> str:
    for name in KEY_NAMES:
        if isinstance(row.get(name), str | int) and row[name] != "":
            return without_secrets(str(row[name]))
    place = row.get(column)
    if not isinstance(place, str) or not place:
        return f"row {number}"
    name = without_secrets(place).partition("?")[0] if is_url(place) else os.path.normpath(place)
    return str(PurePosixPath(name).with_suffix(""))


def _row_of(entry: Entry, rows: Rows, column: str, options: SourceOptions) -> dict[str, Any]:
    """The entry's row, or what all its rows say. A plan outlives its table: what is no longer there must not pass for
    what was."""
    found = []
    try:
        numbers = [int(number) for number in entry.location.split("+")]
    except ValueError as error:
        raise SampleSkipped("missing", f"the table has no row {entry.location}") from error
    for number in numbers:
        try:
            row = rows.row(number)
        except (IndexError, OverflowError) as error:
            raise SampleSkipped("missing", f"the table has no row {number + 1} any more") from error
        if (now := _key(row, column, numbers[0])) != entry.key:
            raise SampleSkipped("missing", f"row {number + 1} now has the key {now!r}")
        found.append(row)
    return found[0] if len(found) == 1 else merge_rows(found, options)


def _version(values: Any) -> int:
    """A number that changes with the row, and with whatever else is told, but not with a URL that was signed anew."""
    return stamp_of(without_secrets(json.dumps(values, sort_keys=True, default=str)))
