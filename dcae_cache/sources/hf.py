"""Hugging Face datasets: of the Hub, of save_to_disk, or parquet and arrow files; rows in order, images as they are.

Rows are read in the library's arrow format: that hands out the stored bytes and never decodes an image, and any number
of threads may read one dataset. The library is imported only once a dataset is opened, and everything it raises leaves
here as a SourceError of one line. Knows nothing of pixels, parts' sizes or caches.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import logging
import math
import os
import re
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, chain, count, islice, repeat
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DCAECacheError, SampleSkipped, SourceError
from ..images import IMAGE_SUFFIXES
from ..records import Entry, Part, Sample, SampleRef
from .base import SourceOptions
from .fields import notes_of
from .remote import is_url

HUB_PREFIX = "hf:"
DATA_SUFFIXES = (".parquet", ".arrow")
KEY_NAMES = ("__key__", "key", "id")
IMAGE_NAMES = ("image", "jpg", "png", "img", "bytes", "image_path", "path", "file_name")
_MAX_MESSAGE = 300  # characters of a library's own words
_Fetch = Callable[[], dict[str, Any]]


def is_dataset_folder(path: Path) -> bool:
    """Whether the folder is one of save_to_disk, or holds data files, and no images or tars that they describe.

    Opens nothing and doesn't import the library.
    """
    if _is_saved(path):
        return True
    try:
        suffixes = {entry.suffix.lower() for entry in path.iterdir() if not entry.name.startswith(".")}
    except OSError:
        return False
    return not suffixes.isdisjoint(DATA_SUFFIXES) and suffixes.isdisjoint({*IMAGE_SUFFIXES, ".tar"})


class HuggingFaceSource:
    """Rows of a dataset, or with ``streaming`` its data files. See ``Source`` for the contract."""

    def __init__(self, uri: str, options: SourceOptions) -> None:
        self.uri = uri if uri.startswith(HUB_PREFIX) or is_url(uri) else os.path.abspath(uri)
        self.entries_per_part: int | None = 1 if options.streaming else None
        self._options = options

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        """Every row, or with ``streaming`` every data file; no image is read.

        A row's key comes from a column that says so by its name, where its values are unique; else it is its number.
        Raises SourceError for a dataset that can't be had, has no image column or is empty.
        """
        with _explained(self.uri):
            yield from self._list_files(limit) if self._options.streaming else self._list_rows(limit)

    def read(self, part: Part) -> Iterator[SampleRef]:
        for entry in part.entries:
            if self._options.streaming:
                yield from islice(self._read_file(entry), entry.max_samples)
                continue
            with _explained(self.uri):
                where = f"{self._place}#{entry.location}"
                ref = self._ref(entry.key, where, self._file(int(entry.location)), None, partial(self._row, entry))
            yield ref

    def _list_rows(self, limit: int | None) -> Iterator[Entry]:
        total, dataset = len(self._rows), self._dataset
        if not total:
            raise SourceError(f"{self._place} is empty: it has no rows. Choose another dataset or split.")
        keys: Iterable[str] = (f"{self._prefix}{row:08d}" for row in range(total))
        if self._key_column:
            keys = _texts(dataset.column(self._key_column))
        stamps: Iterable[int] = repeat(dataset.stamp)
        if dataset.rows:
            files = zip(dataset.files, dataset.rows, strict=True)
            stamps = chain.from_iterable(repeat(_file_stamp(path), rows) for path, rows in files)
        for row, key, stamp in islice(zip(range(total), keys, stamps, strict=False), limit):
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
            stamp = _file_stamp(file) if file else self._dataset.stamp
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
        if row >= len(self._rows):
            raise SampleSkipped("missing", f"the dataset has only {len(self._rows)} rows now")
        try:
            values: dict[str, Any] = self._rows[row].to_pylist()[0]
        except Exception as error:  # the data file changed or went while it was in use
            raise SampleSkipped("unreadable", _one_line(error)) from error
        if self._key_column and str(values[self._key_column]) != entry.key:
            raise SampleSkipped("missing", f"row {row} now has the key {values[self._key_column]!r}")
        return values

    def _read_file(self, entry: Entry) -> Iterator[SampleRef]:
        """The rows of one data file. Raises SourceError where it can't be read on."""
        index = int(entry.location)
        with _explained(self.uri):
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
                    f"Data file {entry.key} ({file or self._place}) breaks off after {row} rows: {_one_line(error)}. "
                    "Its samples are left out; replace it, or run again when it can be reached."
                ) from error
            if values is None:
                return
            key = values[self._key_column] if self._key_column else None
            name = f"{self._prefix}{index:05d}/{row:08d}" if key in (None, "") else str(key)
            yield self._ref(name, f"{self._place}#{index:05d}/{row}", file, shard, partial(dict, values))

    def _tables(self, index: int) -> Iterator[Any]:
        return iter(self._rows.shard(num_shards=self._rows.num_shards, index=index))

    def _ref(self, key: str, source: str, file: Path | None, shard: str | None, fetch: _Fetch) -> SampleRef:
        folder = file.parent if file else self._dataset.folder
        columns, key_column = self._columns, self._key_column

        def load() -> Sample:
            values = fetch()
            data = _image_bytes(values[columns.image], folder)
            caption, label, attributes = columns.notes(values, key_column, self._options)
            return Sample(key, data, source, caption, label, attributes, shard or (file.stem if file else None))

        return SampleRef(key, source, load, lambda: io.BytesIO(_image_bytes(fetch()[columns.image], folder)))

    def _file(self, number: int) -> Path | None:
        """The local data file of that number, or that the row of that number comes from."""
        files = self._dataset.files
        if not files or self._options.streaming:
            return files[number] if files else None
        index = bisect_right(self._ends, number)
        return files[index] if index < len(files) else None

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self._dataset.rows))

    @cached_property
    def _dataset(self) -> _Dataset:
        return _open(self.uri, self._options)

    @cached_property
    def _columns(self) -> _Columns:
        return _choose_columns(self.uri, self._dataset.data.features, self._options)

    @cached_property
    def _key_column(self) -> str | None:
        """The column of keys. While streaming nobody knows whether they are unique before the end."""
        streaming, dataset = self._options.streaming, self._dataset
        return next((name for name in self._columns.keys if streaming or _is_unique(dataset.column(name))), None)

    @cached_property
    def _rows(self) -> Any:
        """The dataset cut down to the columns in use, in the format that gives what is stored."""
        return self._dataset.data.select_columns(self._columns.used).with_format("arrow")

    @property
    def _place(self) -> str:
        return f"{self.uri}:{self._dataset.split}" if self._dataset.split else self.uri

    @property
    def _prefix(self) -> str:
        return f"{self._dataset.split}/" if self._dataset.split else ""


@dataclass(frozen=True)
class _Dataset:
    """A dataset as the library opened it, and what it doesn't say itself."""

    data: Any
    stamp: int  # changes with the content
    split: str | None = None  # where it was chosen from several
    files: tuple[Path, ...] = ()  # of which it is the rows, in order
    rows: tuple[int, ...] = ()  # of each file, or of each shard of a saved dataset; empty where unknown
    folder: Path | None = None  # where relative paths start, unless at the data file

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, without touching the others."""
        return self.data.select_columns([name]).with_format("arrow")[:].column(0)


def _open(uri: str, options: SourceOptions) -> _Dataset:
    import datasets

    datasets.disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):  # what matters of their chatter comes as an exception
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if uri.startswith(HUB_PREFIX):
        return _open_hub(uri, options)
    if is_url(uri):
        raise SourceError(f"{uri}: data files are read from local disks only. Download it, or name hf:owner/name.")
    path = Path(uri)
    return _open_saved(path, options) if _is_saved(path) else _open_files(uri, options)


def _is_saved(path: Path) -> bool:
    has = [(path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")]
    return has[0] or (has[1] and has[2])


def _open_saved(path: Path, options: SourceOptions) -> _Dataset:
    """A folder of save_to_disk."""
    import datasets

    listing = path / "dataset_dict.json"
    names = json.loads(listing.read_text())["splits"] if listing.is_file() else ["train"]
    name = _choose_split(str(path), names, options.split)
    split = name if options.split and len(names) > 1 else None
    folder = path / name if listing.is_file() else path
    is_empty = not json.loads((folder / "state.json").read_text())["_data_files"]  # which the library fails to load
    found: Any = None if is_empty else datasets.load_from_disk(str(folder))
    if not found:
        raise SourceError(f"{folder} is empty: it has no rows. Choose another dataset or split.")
    stamp = _stamp(found._fingerprint)  # written beside the data, so the same at every load
    if not options.streaming:
        return _Dataset(found, stamp, split, folder=path)
    total, shards = len(found), min(len(found), max(1, len(found.cache_files)))
    rows = tuple(total // shards + (index < total % shards) for index in range(shards))
    return _Dataset(found.to_iterable_dataset(num_shards=shards), stamp, split, rows=rows, folder=path)


def _open_files(uri: str, options: SourceOptions) -> _Dataset:
    """Parquet or arrow files: those of a folder, of a pattern, or one."""
    import datasets

    path = Path(uri)
    if path.is_dir():
        names = [str(entry) for entry in path.iterdir() if not entry.name.startswith(".")]
    else:
        names = [uri] if path.exists() else glob.glob(uri, recursive=True)
    files = tuple(Path(name) for name in sorted(names) if name.lower().endswith(DATA_SUFFIXES))
    kinds = sorted({file.suffix.lower() for file in files})
    if not kinds:
        raise SourceError(f"{uri} is no saved dataset, and there are no .parquet or .arrow files. Check the path.")
    if len(kinds) > 1:
        raise SourceError(f"{uri} holds both .parquet and .arrow files. Choose one kind: {uri}/*{kinds[0]}")
    _choose_split(uri, ["train"], options.split)
    counted = [(file, _count_rows(file, options.streaming)) for file in files]
    counted = [(file, rows) for file, rows in counted if rows]  # the library stumbles over a file without rows
    if not counted:
        raise SourceError(f"{uri} is empty: there are no rows in it. Choose another dataset.")
    files, rows = zip(*counted, strict=True)
    data = datasets.load_dataset(
        kinds[0][1:],
        data_files=[glob.escape(str(file)) for file in files],
        split="train",
        streaming=options.streaming,
    )
    if len(files) == data.num_shards if options.streaming else sum(rows) == len(data):
        return _Dataset(_with_features(data), 0, files=files, rows=rows)
    return _Dataset(_with_features(data), _stamp("".join(map(str, map(_file_stamp, files)))), folder=files[0].parent)


def _open_hub(uri: str, options: SourceOptions) -> _Dataset:
    """A dataset of the Hub, or of the library's cache while the Hub can't be reached."""
    import datasets

    parts = uri.removeprefix(HUB_PREFIX).split("/")
    if not 1 <= len(parts) <= 3 or not all(re.fullmatch(r"[\w.+ -]+", part) for part in parts):
        raise SourceError(f"{uri} names no dataset; expected hf:owner/name or hf:owner/name/config.")
    name, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    if Path(name).exists():
        raise SourceError(f"There is a {name} in the current folder, and it would be taken for {uri}. Run elsewhere.")
    if options.streaming:
        found = datasets.load_dataset(name, config, streaming=True)
        split = _choose_split(uri, list(found), options.split)
        named = split if options.split and len(found) > 1 else None
        return _Dataset(_with_features(found[split]), 0, named)
    known = [str(split) for split in datasets.get_dataset_split_names(name, config)]
    split = _choose_split(uri, known, options.split, slices=True)
    data = datasets.load_dataset(name, config, split=split)
    return _Dataset(data, _stamp(data._fingerprint), split if options.split and len(known) > 1 else None)


def _choose_split(uri: str, known: list[str], wanted: str | None, slices: bool = False) -> str:
    """The split wanted, or the only one. With ``slices`` also such as train[:10%] and train+test."""
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted is None:
        raise SourceError(f"{uri} has the splits {', '.join(known)}: choose one with --split.")
    bases = [re.sub(r"\[.*\]$", "", part) for part in wanted.split("+")] if slices else [wanted]
    if not set(bases) <= set(known):
        raise SourceError(f"{uri} has no split {wanted}; it has: {', '.join(known)}. Choose one with --split.")
    return wanted


def _with_features(data: Any) -> Any:
    """Formats that don't state their columns are asked for them by their first rows."""
    return data if data.features is not None else data._resolve_features()


def _count_rows(path: Path, damaged_too: bool) -> int:
    """Rows of a local parquet or arrow file, by what it says of itself; -1 for a damaged one."""
    try:
        if path.suffix.lower() == ".parquet":
            return int(pq.read_metadata(path).num_rows)
        with pa.memory_map(str(path)) as file:
            try:
                return sum(batch.num_rows for batch in pa.ipc.open_stream(file))
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(file)
                return sum(reader.get_batch(index).num_rows for index in range(reader.num_record_batches))
    except (pa.ArrowException, OSError) as error:
        if damaged_too:
            return -1
        raise SourceError(
            f"Can't read {path}: {_one_line(error)}. Replace it, or leave it out; --streaming gets past it."
        ) from error


def _file_stamp(path: Path) -> int:
    info = path.stat()
    return _stamp(f"{path.name}:{info.st_size}:{info.st_mtime_ns}")


def _stamp(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class _Columns:
    """What the columns are for."""

    image: str
    keys: list[str]  # that may hold the key
    values: list[str]  # that may become caption, label or attribute
    classes: Mapping[str, list[str]]  # names of the classes of the columns that number them

    @property
    def used(self) -> list[str]:
        return [self.image, *(name for name in self.values if name != self.image)]

    def notes(
        self, row: Mapping[str, Any], key: str | None, options: SourceOptions
    ) -> tuple[str | None, str | None, dict[str, Any]]:
        """Caption, label and attributes of a row. The key is none of them, unless the options say so."""
        named = (options.caption_column, options.label_column)
        values = {name: self._plain(name, row[name]) for name in self.values if name != key or name in named}
        notes = notes_of(values, options)
        label, attributes = notes.label, dict(notes.attributes)
        if label is None and not options.label_column and len(self.classes) == 1:
            label = attributes.pop(next(iter(self.classes)), None)
        return notes.caption, label, attributes

    def _plain(self, name: str, value: Any) -> Any:
        names = self.classes.get(name)
        if names is None or not isinstance(value, int):
            return _json_able(value)
        return names[value] if 0 <= value < len(names) else None


def _choose_columns(uri: str, features: Mapping[str, Any], options: SourceOptions) -> _Columns:
    import datasets

    schema = datasets.Features(features).arrow_schema
    for option, wanted in (("caption", options.caption_column), ("label", options.label_column)):
        if wanted and wanted not in features:
            raise _no_column(uri, wanted, features, option)
    image = _image_column(uri, features, schema, options)
    keys = [name for name in KEY_NAMES if name in features and name != image and _may_be_key(schema.field(name).type)]
    values = [name for name in features if name != image and not _holds_binary(schema.field(name).type)]
    classes = {name: features[name].names for name in values if isinstance(features[name], datasets.ClassLabel)}
    return _Columns(image, [key for key in keys if key not in classes], values, classes)


def _image_column(uri: str, features: Mapping[str, Any], schema: pa.Schema, options: SourceOptions) -> str:
    import datasets

    wanted = options.image_column
    if wanted and wanted not in features:
        raise _no_column(uri, wanted, features, "image")
    if wanted and not _may_be_image(schema.field(wanted).type):
        kind = _kinds({wanted: features[wanted]})
        raise SourceError(f"No images are in column {kind} of {uri}; it has: {_kinds(features)}. Choose another.")
    if wanted:
        return wanted
    images = [name for name in features if isinstance(features[name], datasets.Image)]
    if len(images) > 1 and "image" not in images:
        raise SourceError(f"{uri} has the image columns {', '.join(images)}: choose one with --image-column.")
    if images:
        return "image" if "image" in images else images[0]
    for name in IMAGE_NAMES:
        if name in features and _may_be_image(schema.field(name).type):
            return name
    raise SourceError(f"{uri} has no image column; it has: {_kinds(features)}. Choose one with --image-column.")


def _no_column(uri: str, wanted: str, features: Mapping[str, Any], option: str) -> SourceError:
    return SourceError(
        f"There is no column {wanted} in {uri}; it has: {', '.join(features)}. Choose one with --{option}-column."
    )


def _kinds(features: Mapping[str, Any]) -> str:
    """Columns with their types, as a person would say them."""
    return ", ".join(
        f"{name} ({getattr(kind, 'dtype', None) if type(kind).__name__ == 'Value' else type(kind).__name__})"
        for name, kind in features.items()
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _may_be_key(kind: pa.DataType) -> bool:
    return bool(_is_text(kind) or pa.types.is_integer(kind))


def _may_be_image(kind: pa.DataType) -> bool:
    """Bytes, a path, or both in one."""
    return _is_text(kind) or _is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _holds_binary(kind: pa.DataType) -> bool:
    """Images, sounds and videos are stored with their bytes; JSON has no place for such."""
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_binary(kind.storage_type)
    return _is_binary(kind) or any(_holds_binary(kind.field(index).type) for index in range(kind.num_fields))


def _is_unique(column: pa.ChunkedArray) -> bool:
    if column.null_count or pc.count_distinct(column).as_py() != len(column):
        return False
    return not _is_text(column.type) or not pc.any(pc.equal(column, "")).as_py()


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), 65_536):
            yield from map(str, chunk.slice(start, 65_536).to_pylist())


def _json_able(value: Any) -> Any:
    """Lists and dicts stay; dates and whatever else JSON lacks become text, and what is no number, nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _json_able(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_able(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _image_bytes(value: Any, folder: Path | None) -> bytes:
    """The encoded image that a cell holds or names. A path without a start begins at ``folder``."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        value, folder = value.get("path"), None
    if value is None or value == "":
        raise SampleSkipped("missing", "the row has no image")
    return value if isinstance(value, bytes) else _read_path(str(value), folder)


def _read_path(path: str, folder: Path | None) -> bytes:
    """Read a regular file; anything else is refused before it is opened: a pipe would block for ever."""
    try:
        if "hf://" in path:  # of a dataset that is streamed from the Hub
            import fsspec

            with fsspec.open(path, "rb") as remote:
                return bytes(remote.read())
        if is_url(path):
            raise SampleSkipped("unreadable", "the row names a URL, not a file")
        place = Path(path)
        if folder is not None and (folder / path).exists():
            place = folder / path
        if not stat.S_ISREG(place.stat().st_mode):
            raise SampleSkipped("unreadable", "not a regular file")
        return place.read_bytes()
    except SampleSkipped:
        raise
    except FileNotFoundError as error:
        raise SampleSkipped("missing", f"there is no file {path}") from error
    except Exception as error:  # of the file system or of any remote one
        raise SampleSkipped("unreadable", _one_line(error)) from error


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn whatever the libraries raise into a SourceError of one line."""
    try:
        yield
    except DCAECacheError:
        raise
    except Exception as error:
        raise SourceError(_explain(uri, error)) from error


def _explain(uri: str, error: Exception) -> str:
    """What a person can do about it. The libraries' own words tell these cases apart better than their types do."""
    said = _one_line(error)
    if "scripts are no longer supported" in said or "trust_remote_code" in said:
        return f"{uri} is made by a script of its own, and such are not run. Give its data files, as parquet or tar."
    if "Couldn't find cache" in said and "config" in said:
        return f"{uri} is not in the cache, and the Hub is not asked: {said}. Name one, as in hf:owner/name/config."
    if isinstance(error, ConnectionError) or "offline" in said.lower() or "is not cached" in said:
        return (
            f"The Hub can't be reached for {uri}: {said}. Check the network and HF_HUB_OFFLINE, or give local files."
        )
    if "gated" in said:
        return f"{uri} is gated: {said}. Accept its terms on its page, then run hf auth login or set HF_TOKEN."
    if type(error).__name__ in ("DatasetNotFoundError", "RepositoryNotFoundError", "HFValidationError"):
        return f"There is no dataset {uri} on the Hub, or it is private. Check the name, or set HF_TOKEN."
    if "BuilderConfig" in said or "Config name is missing" in said:
        return f"{uri} needs the name of a config: {said}. Name one, as in hf:owner/name/config."
    if type(error).__name__ in ("EmptyDatasetError", "DataFilesNotFoundError"):
        return f"{uri} holds no data files: {said}. Choose another dataset."
    return f"Can't read {uri} as a dataset: {said}. Check that its files are whole and have the same columns."


def _one_line(error: BaseException) -> str:
    """The error's first cause that says something, without examples of code, at most as long as a few lines."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).partition("Example of usage")[0].split()).rstrip(". ") or type(error).__name__
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"
