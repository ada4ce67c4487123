"""Hugging Face datasets: of the Hub, of save_to_disk, or parquet and arrow files; rows in order, images as they are.

Rows are read in the library's arrow format: that hands out the stored bytes and never decodes an image, and any number
of threads may read one dataset. The library is imported only once a dataset is opened, and everything it raises leaves
here as a SourceError of one line. Knows nothing of pixels, parts' sizes or caches.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from itertools import accumulate, chain, count, islice, repeat
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from ..errors import SampleSkipped, SourceError
from ..ledger import Counts, SourceCounts
from ..records import Entry, Part, Sample, SampleRef
from ..urls import is_url, without_secrets
from .base import NothingFound, SourceOptions
from .data_files import DataFile
from .hf_columns import Columns, Places, choose_columns, image_bytes, is_unique, num_held, texts
from .hf_open import HUB_PREFIX, OpenedDataset, explained, hub_folders, open_dataset, plain_words
from .hf_stored import adopt_stored, open_stored, tell_stored

_Fetch = Callable[[], dict[str, Any]]


class HuggingFaceSource(NothingFound):
    """Rows of a dataset, or with ``streaming`` its data files. See ``Source`` for the contract."""

    kind: str = "a Hugging Face dataset"
    honours: frozenset[str] = frozenset(("image_column", "caption_column", "label_column", "split", "streaming"))

    def __init__(self, uri: str, options: SourceOptions, stored: Mapping[str, DataFile] | None = None) -> None:
        """``stored``: of a folder in a store, its files by their names below it."""
        self._is_stored = is_url(uri)  # hf://..., too: files of the Hub, not the dataset hf:...
        self._asked = uri if uri.startswith(HUB_PREFIX) or is_url(uri) else os.path.abspath(uri)
        self._stored = stored
        self.uri = without_secrets(self._asked)
        self.entries_per_part: int | None = 1 if options.streaming else None
        self._options = options
        self._met = SourceCounts()
        self._adopted: Mapping[str, Any] | None = None
        self._last_column: tuple[str, Any] | None = None

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        """Every row, or with ``streaming`` every data file; no image is read.

        A row's key comes from a column that says so by its name, where its values are unique; else it is its number.
        Raises SourceError for a dataset that can't be had, has no image column or is empty.
        """
        with explained(self.uri):
            yield from self._list_files(limit) if self._options.streaming else self._list_rows(limit)

    def counts(self) -> SourceCounts:
        return self._met

    def found(self) -> dict[str, Any]:
        return {**tell_stored(self._dataset), "key": self._key_column} if self._is_stored else {}

    def adopt(self, found: Mapping[str, Any]) -> None:
        self._adopted = found if self._is_stored else None

    def read(self, part: Part) -> Iterator[SampleRef]:
        counts = Counts()
        if self._is_stored and not self._options.streaming:
            yield from self._read_stored(part)
            return
        for entry in part.entries:
            if self._options.streaming:
                for ref in islice(self._read_file(entry), entry.max_samples):
                    counts.found += 1
                    counts.images += 1
                    yield ref
                self._met.parts[part.number] = counts
                continue
            with explained(self.uri):
                where = f"{self._place}#{entry.location}"
                ref = self._ref(entry.key, where, self._file(int(entry.location)), None, partial(self._row, entry))
            yield ref

    def _read_stored(self, part: Part) -> Iterator[SampleRef]:
        """The part's rows, read in order: a store is asked for much at once, and what can't be had now leaves the
        part out."""
        with explained(self.uri):
            total = len(self._rows)
            numbers = [int(entry.location) for entry in part.entries]
            tables = self._rows.walk(number for number in numbers if number < total)
        for entry, number in zip(part.entries, numbers, strict=True):
            with explained(self.uri):
                values = next(tables).to_pylist()[0] if number < total else None
                fetch = partial(self._same, entry, values)
                where, file = f"{self._place}#{entry.location}", self._file(number)
                ref = self._ref(entry.key, where, file, None, fetch)
                held = num_held(values[self._columns.image]) if values else 0
            yield replace(ref, num_bytes=held)

    def _list_rows(self, limit: int | None) -> Iterator[Entry]:
        total, dataset = len(self._rows), self._dataset
        if not total:
            raise SourceError(f"{self._place} is empty: it has no rows. Choose another dataset or split.")
        keys: Iterable[str] = (f"{self._prefix}{row:08d}" for row in range(total))
        if self._key_column:
            keys = texts(self._column(self._key_column))
            self._last_column = None
        stamps: Iterable[int] = repeat(dataset.stamp)
        if dataset.rows:
            files = zip(dataset.files, dataset.rows, strict=True)
            stamps = chain.from_iterable(repeat(file.stamp, rows) for file, rows in files)
        counts = self._met.listed = Counts()
        for row, key, stamp in islice(zip(range(total), keys, stamps, strict=False), limit):
            counts.found += 1
            counts.images += 1
            yield Entry(key, str(row), -1, stamp)

    def _list_files(self, limit: int | None) -> Iterator[Entry]:
        total, left = self._rows.num_shards, limit
        for index in range(total):
            wanted = None
            if left is not None:
                found = self._count(index, left + 1)
                wanted = left if found > left else None
                left -= found
            file = self._file(index)
            stamp = file.stamp if file else self._dataset.stamp
            yield Entry(f"{self._prefix}{index:05d}-of-{total:05d}", str(index), -1, stamp, wanted)
            if left is not None and left <= 0:
                return

    def _count(self, index: int, enough: int) -> int:
        """Rows of a data file, of a remote one no more than ``enough``. A damaged one has none: reading it says so."""
        if self._dataset.rows:
            return max(self._dataset.rows[index], 0)
        try:
            return sum(1 for _ in islice(self._tables(index), enough))
        except Exception:  # of any of the libraries below datasets
            return 0

    def _row(self, entry: Entry) -> dict[str, Any]:
        """The entry's row. A plan outlives its dataset: what is no longer there must not pass for what was."""
        row = int(entry.location)
        try:
            values = self._rows[row].to_pylist()[0] if row < len(self._rows) else None
        except Exception as error:  # the data file changed or went while it was in use
            raise SampleSkipped("unreadable", plain_words(error)) from error
        return self._same(entry, values)

    def _same(self, entry: Entry, values: dict[str, Any] | None) -> dict[str, Any]:
        """The values of the entry's row, if they are still that entry's."""
        row = int(entry.location)
        if values is None:
            raise SampleSkipped("missing", f"the dataset has only {len(self._rows)} rows now")
        if self._key_column and str(values[self._key_column]) != entry.key:
            raise SampleSkipped("missing", f"row {row} now has the key {values[self._key_column]!r}")
        return values

    def _read_file(self, entry: Entry) -> Iterator[SampleRef]:
        """The rows of one data file. Raises SourceError where it can't be read on."""
        index = int(entry.location)
        with explained(self.uri):
            if index >= self._rows.num_shards:
                raise SourceError(f"{self._place} has only {self._rows.num_shards} data files now, no {entry.key}.")
            tables, file = self._tables(index), self._file(index)
        shard = file.stem if file else PurePosixPath(entry.key).name
        for row in count():
            try:
                table = next(tables, None)
                values = table.to_pylist()[0] if table is not None else None
            except Exception as error:
                raise SourceError(
                    f"Data file {entry.key} ({file.place if file else self._place}) breaks off after {row} rows: "
                    f"{plain_words(error)}. Its samples are left out; replace it, or run again when it can be reached."
                ) from error
            if values is None:
                return
            key = values[self._key_column] if self._key_column else None
            name = f"{self._prefix}{index:05d}/{row:08d}" if key in (None, "") else str(key)
            yield self._ref(name, f"{self._place}#{index:05d}/{row}", file, shard, partial(dict, values))

    def _tables(self, index: int) -> Iterator[Any]:
        return iter(self._rows.shard(num_shards=self._rows.num_shards, index=index))

    def _ref(self, key: str, source: str, file: DataFile | None, shard: str | None, fetch: _Fetch) -> SampleRef:
        within = hub_folders() if self.uri.startswith(HUB_PREFIX) and not self._is_stored else None
        places = Places(file.folder if file else self._dataset.folder, within, self._options)
        columns, key_column = self._columns, self._key_column

        def load() -> Sample:
            values = fetch()
            data = image_bytes(values[columns.image], places)
            said = columns.notes(values, key_column, self._options)
            name = shard or (file.stem if file else None)
            return Sample(key, data, source, said.caption, said.label, said.attributes, name)

        def open_image() -> BinaryIO:
            return io.BytesIO(image_bytes(fetch()[columns.image], places))

        return SampleRef(key, source, load, open_image, lambda: columns.notes(fetch(), key_column, self._options))

    def _file(self, number: int) -> DataFile | None:
        """The data file of that number, or that the row of that number comes from."""
        files = self._dataset.files
        if not files or self._options.streaming:
            return files[number] if files else None
        index = bisect_right(self._ends, number)
        return files[index] if index < len(files) else None

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self._dataset.rows))

    @cached_property
    def _dataset(self) -> OpenedDataset:
        if not self._is_stored:
            return open_dataset(self.uri, self._options)
        if self._adopted is not None:
            return adopt_stored(self._asked, self._options, self._stored, self._adopted)
        return open_stored(self._asked, self._options, self._stored)

    @cached_property
    def _columns(self) -> Columns:
        return choose_columns(self.uri, self._dataset.data.features, self._options)

    @cached_property
    def _key_column(self) -> str | None:
        """The column of keys. While streaming nobody knows whether they are unique before the end."""
        if self._adopted is not None:
            return cast("str | None", self._adopted["key"])
        streaming = self._options.streaming
        return next((name for name in self._columns.keys if streaming or is_unique(self._column(name))), None)

    def _column(self, name: str) -> Any:
        """A column of the dataset; of a store it is kept until it was listed by."""
        if self._last_column is None or self._last_column[0] != name:
            self._last_column = (name, self._dataset.column(name))
        return self._last_column[1]

    @cached_property
    def _rows(self) -> Any:
        """The dataset cut down to the columns in use, in the format that gives what is stored."""
        return self._dataset.cut_to(self._columns.used)

    @property
    def _place(self) -> str:
        return f"{self.uri}:{self._dataset.split}" if self._dataset.split else self.uri

    @property
    def _prefix(self) -> str:
        return f"{self._dataset.split}/" if self._dataset.split else ""
