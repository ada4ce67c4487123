"""Opening a Hugging Face dataset: of the Hub, of save_to_disk, or parquet and arrow files of this machine.

The library is imported only here and for the types of columns, and only once a dataset is opened. Everything it raises
leaves as a SourceError of one line. Knows nothing of samples or images.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DCAECacheError, SourceError, one_line
from ..text import stamp_of
from .base import SourceOptions
from .data_files import DataFile
from .stored_parquet import StoredParquet

HUB_PREFIX = "hf:"
DATA_SUFFIXES = (".parquet", ".arrow")


@dataclass(frozen=True)
class OpenedDataset:
    """A dataset as the library opened it, and what it doesn't say itself."""

    data: Any
    stamp: int  # changes with the content
    split: str | None = None  # where it was chosen from several
    files: tuple[DataFile, ...] = ()  # of which it is the rows, in order
    rows: tuple[int, ...] = ()  # of each file, or of each shard of a saved dataset; empty where unknown
    folder: str | None = None  # where relative paths start, unless at the data file

    @property
    def is_stored(self) -> bool:
        """Whether its rows are read from a store, in order, rather than by their numbers on this machine."""
        return isinstance(self.data, StoredParquet)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, without touching the others."""
        if isinstance(self.data, StoredParquet):
            return self.data.column(name)
        return self.data.select_columns([name]).with_format("arrow")[:].column(0)

    def cut_to(self, names: list[str]) -> Any:
        """The rows with these columns alone, in the format that gives what is stored."""
        data = self.data.select_columns(names)
        return data if self.is_stored else data.with_format("arrow")


def open_dataset(uri: str, options: SourceOptions) -> OpenedDataset:
    import datasets

    datasets.disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):  # what matters of their chatter comes as an exception
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if uri.startswith(HUB_PREFIX):
        return _open_hub(uri, options)
    path = Path(uri)
    return _open_saved(path, options) if is_saved(path) else _open_files(uri, options)


def is_saved(path: Path) -> bool:
    has = [(path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")]
    return has[0] or (has[1] and has[2])


def _open_saved(path: Path, options: SourceOptions) -> OpenedDataset:
    """A folder of save_to_disk."""
    import datasets

    listing = path / "dataset_dict.json"
    names = json.loads(listing.read_text())["splits"] if listing.is_file() else ["train"]
    name = choose_split(str(path), names, options.split)
    split = name if options.split and len(names) > 1 else None
    folder = path / name if listing.is_file() else path
    is_empty = not json.loads((folder / "state.json").read_text())["_data_files"]  # which the library fails to load
    found: Any = None if is_empty else datasets.load_from_disk(str(folder))
    if not found:
        raise SourceError(f"{folder} is empty: it has no rows. Choose another dataset or split.")
    stamp = stamp_of(found._fingerprint)  # written beside the data, so the same at every load
    if not options.streaming:
        return OpenedDataset(found, stamp, split, folder=str(path))
    total, shards = len(found), min(len(found), max(1, len(found.cache_files)))
    rows = tuple(total // shards + (index < total % shards) for index in range(shards))
    data = found.to_iterable_dataset(num_shards=shards)
    return OpenedDataset(data, stamp, split, rows=rows, folder=str(path))


def _open_files(uri: str, options: SourceOptions) -> OpenedDataset:
    """Parquet or arrow files: those of a folder, of a pattern, or one."""
    import datasets

    path = Path(uri)
    if path.is_dir():
        files = data_files(path)
    else:
        names = [uri] if path.exists() else glob.glob(uri, recursive=True)
        files = [Path(name) for name in sorted(names) if name.lower().endswith(DATA_SUFFIXES)]
    kinds = sorted({file.suffix.lower() for file in files})
    if not kinds:
        raise SourceError(f"{uri} is no saved dataset, and there are no .parquet or .arrow files. Check the path.")
    if len(kinds) > 1:
        raise SourceError(f"{uri} holds both .parquet and .arrow files. Choose one kind: {uri}/*{kinds[0]}")
    split = None
    if path.is_dir() or options.split:  # files that were named are all wanted, unless a split is asked for
        splits = files_of_splits(path if path.is_dir() else files[0].parent, files)
        name = choose_split(uri, list(splits), options.split)
        files, split = splits[name], name if options.split and len(splits) > 1 else None
    counted = [(file, _count_rows(file, options.streaming)) for file in files]
    counted = [(file, rows) for file, rows in counted if rows]  # the library stumbles over a file without rows
    if not counted:
        raise SourceError(f"{uri} is empty: there are no rows in it. Choose another dataset.")
    read = tuple(DataFile.local(file) for file, _ in counted)
    rows = tuple(number for _, number in counted)
    data = datasets.load_dataset(
        kinds[0][1:],
        data_files=[glob.escape(file.place) for file in read],
        split="train",
        streaming=options.streaming,
    )
    if len(read) == data.num_shards if options.streaming else sum(rows) == len(data):
        return OpenedDataset(_with_features(data), 0, split, files=read, rows=rows)
    stamp = stamp_of("".join(str(file.stamp) for file in read))
    return OpenedDataset(_with_features(data), stamp, split, folder=read[0].folder)


def data_files(folder: Path) -> list[Path]:
    """The parquet and arrow files of a folder tree, sorted, hidden ones left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in DATA_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def files_of_splits(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Which of the files belong to which split: by their names and folders, as the library tells them apart."""
    from datasets.data_files import get_data_patterns, resolve_pattern

    splits: dict[str, list[Path]] = {}
    for split, patterns in get_data_patterns(str(folder)).items():
        named: set[Path] = set()
        for pattern in patterns:
            with suppress(FileNotFoundError):  # of several patterns of a split, some match nothing
                named.update(Path(found) for found in resolve_pattern(pattern, str(folder)))
        mine = [file for file in files if file.absolute() in named]
        if mine:
            splits[str(split)] = mine
    return splits or {"train": list(files)}


def _open_hub(uri: str, options: SourceOptions) -> OpenedDataset:
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
        split = choose_split(uri, list(found), options.split)
        named = split if options.split and len(found) > 1 else None
        return OpenedDataset(_with_features(found[split]), 0, named)
    known = [str(split) for split in datasets.get_dataset_split_names(name, config)]
    split = choose_split(uri, known, options.split, slices=True)
    data = datasets.load_dataset(name, config, split=split)
    return OpenedDataset(data, stamp_of(data._fingerprint), split if options.split and len(known) > 1 else None)


def choose_split(uri: str, known: list[str], wanted: str | None, slices: bool = False) -> str:
    """The split wanted, or the only one. With ``slices`` also such as train[:10%] and train+test."""
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted is None:
        raise SourceError(f"{uri} has the splits {', '.join(known)}: choose one with `split`.")
    bases = [re.sub(r"\[.*\]$", "", part) for part in wanted.split("+")] if slices else [wanted]
    if not set(bases) <= set(known):
        raise SourceError(f"{uri} has no split {wanted}; it has: {', '.join(known)}. Choose one with `split`.")
    return wanted


def features_of(schema: pa.Schema) -> Any:
    """The columns of a file as the library calls them."""
    import datasets

    return datasets.Features.from_arrow_schema(schema)


def convert(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in another schema, as the library brings files of one dataset into one."""
    from datasets.table import table_cast

    return table_cast(table, schema)


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
            f"Can't read {path}: {plain_words(error)}. Replace it, or leave it out; `streaming` gets past it."
        ) from error


@lru_cache(1)
def hub_folders() -> tuple[Path, ...]:
    """Where the libraries keep what they have fetched: the only files of this machine that a dataset of the Hub may
    name. (A token lies beside them, not in them.)"""
    import datasets.config

    hub = os.environ.get("HF_HUB_CACHE") or Path(datasets.config.HF_CACHE_HOME) / "hub"
    return Path(datasets.config.HF_DATASETS_CACHE), Path(hub)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn whatever the libraries raise into a SourceError of one line."""
    try:
        yield
    except DCAECacheError:
        raise
    except Exception as error:
        raise SourceError(_explain(uri, error)) from error


def _explain(uri: str, error: Exception) -> str:
    """What a person can do about it. The libraries' own words tell these cases apart better than their types do."""
    said = plain_words(error)
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


def plain_words(error: BaseException) -> str:
    """The error's first cause that says something, without examples of code."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    return one_line(error).partition("Example of usage")[0].rstrip(". ")
