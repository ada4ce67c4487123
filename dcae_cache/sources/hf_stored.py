"""Opening a dataset of parquet files in a store: those of a folder, of a pattern, or one.

Of each file a few requests for its last bytes; its rows are read when they are wanted (stored_parquet.py). Knows
nothing of samples or images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..urls import without_secrets
from .base import SourceOptions
from .data_files import DataFile, stored_files
from .fetching import matching_files
from .hf_open import OpenedDataset, choose_split, convert, features_of, files_of_splits
from .stored_parquet import FileEnd, StoredParquet, file_ends
from .trees import is_inside

_SUFFIX = ".parquet"


def open_stored(uri: str, options: SourceOptions, listed: Mapping[str, DataFile] | None) -> OpenedDataset:
    """``listed``: the files of the folder ``uri`` by their names below it; None: ``uri`` is a file or a pattern.

    Raises SourceError where the files can't be had, are of several kinds, or hold nothing.
    """
    split = None
    if listed is None:
        refuse_other_kinds(uri, [DataFile(uri, -1, -1).name])
        files = _named(stored_files(uri, options.user_agent))
    else:
        files = dict(listed)
    refuse_other_kinds(uri, list(files))
    if listed is not None or options.split:  # files that were named are all wanted, unless a split is asked for
        splits = _splits(files)
        name = choose_split(uri, list(splits), options.split)
        files, split = splits[name], name if options.split and len(splits) > 1 else None
    ends = file_ends(list(files.values()), options.user_agent)
    there = [(file, end) for file, end in zip(files.values(), ends, strict=True) if end.rows]
    for file, end in there:
        if end.rows < 0 and not options.streaming:
            raise SourceError(f"{file.place} is damaged. Replace it, or leave it out; `streaming` gets past it.")
    if not any(end.rows > 0 for _, end in there):
        raise SourceError(f"{uri} is empty: there are no rows in it. Choose another dataset.")
    _refuse_other_columns(there)
    return _opened(tuple(file for file, _ in there), [end.rows for _, end in there], ends, split, options)


def adopt_stored(
    uri: str, options: SourceOptions, listed: Mapping[str, DataFile] | None, found: Mapping[str, Any]
) -> OpenedDataset:
    """The dataset as another process has opened it, which tells of it what ``tell_stored`` gives."""
    places = [file.place for file in listed.values()] if listed is not None else matching_files(uri)
    own = {without_secrets(place): place for place in places}
    files = tuple(DataFile(own.get(place, place), *told) for place, *told, _ in found["files"])
    rows = [rows for *_, rows in found["files"]]
    whole = next(file for file, number in zip(files, rows, strict=True) if number > 0)
    return _opened(files, rows, file_ends([whole], options.user_agent), found["split"], options)


def tell_stored(dataset: OpenedDataset) -> dict[str, Any]:
    """What ``adopt_stored`` needs, as JSON values."""
    told = [
        (without_secrets(file.place), file.num_bytes, file.version, rows)
        for file, rows in zip(dataset.files, dataset.rows, strict=True)
    ]
    return {"files": told, "split": dataset.split}


def refuse_other_kinds(uri: str, names: Sequence[str]) -> None:
    """Raise SourceError unless all files of that name are parquet."""
    others = [name for name in names if not name.lower().endswith(_SUFFIX)]
    if others or not names:
        what = f"{others[0]} is not" if others else "there are none"
        raise SourceError(
            f"The data files of a store must be parquet, and of {uri} {what}. Download them, or save them as parquet."
        )


def _opened(
    files: tuple[DataFile, ...],
    rows: Sequence[int],
    ends: Sequence[FileEnd],
    split: str | None,
    options: SourceOptions,
) -> OpenedDataset:
    schema = next(end.schema for end in ends if end.schema is not None and end.rows > 0)
    features = features_of(schema)
    data = StoredParquet(files, tuple(rows), features, features.arrow_schema, convert, options.user_agent)
    return OpenedDataset(data, 0, split, files=files, rows=tuple(rows))


def _refuse_other_columns(files: Sequence[tuple[DataFile, FileEnd]]) -> None:
    known = [(file, set(end.schema.names)) for file, end in files if end.schema is not None]
    first, names = known[0]
    for file, others in known:
        if others != names:
            raise SourceError(
                f"{file.place} and {first.place} have different columns: {', '.join(sorted(others ^ names))} only in "
                "one. Give files of one kind."
            )


def _named(files: Sequence[DataFile]) -> dict[str, DataFile]:
    """By their names below the first one's folder, or by their own."""
    start = f"{files[0].folder.partition('?')[0]}/" if files else ""
    names = {file.place.partition("?")[0].removeprefix(start): file for file in files}
    return {name if is_inside(name) else file.name: file for name, file in names.items()}


def _splits(files: Mapping[str, DataFile]) -> dict[str, dict[str, DataFile]]:
    """What the library says of empty files that lie here as these do there: it looks for each of its patterns by
    itself, which would take a store long."""
    with tempfile.TemporaryDirectory(prefix="dcae-cache-") as folder:
        root = Path(folder)
        for name in files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        found = files_of_splits(root, [root / name for name in files])
        return {
            split: {str(path.relative_to(root)): files[str(path.relative_to(root))] for path in paths}
            for split, paths in found.items()
        }
