"""What the tables of finished parts said when they were last read, so that a run over ten thousand of them asks the
system about each, and reads only those that have changed since. Derived, of this machine alone, safe to delete.

A table is the one that was read where its size, times and inode are the same: each is written to a file of its own,
which is then given its name. Knows nothing of plans.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa

from ..errors import CacheError
from ..files import make_folder, open_regular, replace_atomically
from ..text import parse_json
from ..version import __version__
from .parts import PartInfo, TableFile, file_stamp, info_to_json, part_info_of, table_path
from .rows_file import DERIVED_FOLDER

_NAME = "parts.arrow"
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("name", "stamp", "sha256", "info", "check")],
    metadata={"creator": f"dcae-cache {__version__}"},  # another release may read more of a table
)
_BATCH = 1024
_KEPT = 2  # batches in memory; parts are asked for in order


class KnownParts:
    """The infos of parts whose tables are as they were. Empty where nothing is kept, or what is can't be read. Asking
    is safe on any thread."""

    def __init__(self, cache: Path) -> None:
        self._cache, self._lock = cache, Lock()
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with (cache / DERIVED_FOLDER / _NAME).open("rb") as file:
                self._reader = pa.ipc.open_file(pa.py_buffer(file.read()))
            if not self._reader.schema.equals(_SCHEMA, check_metadata=True):
                return
            for number in range(self._reader.num_record_batches):
                names = self._batch(number)["name"].to_pylist()
                self._places.update((name, (number, row)) for row, name in enumerate(names))
        except (OSError, pa.ArrowException):  # what is damaged is worth nothing
            self._places = {}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, name: str) -> PartInfo | None:
        """The info of a part; None where it isn't known, or its table isn't the one that is known."""
        if name not in self._places:
            return None
        try:
            with open_regular(table_path(self._cache, name)) as file:  # a network file system looks again at each open
                stamp = file_stamp(os.fstat(file.fileno()))
            known = self._row(name)
            if known["stamp"] != stamp or known["check"] != _check(known):
                return None
            info = part_info_of(name, parse_json(known["info"]))
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
            return None  # its table is read, and says what is wrong
        return replace(info, table=TableFile(stamp, known["sha256"]))

    def _row(self, name: str) -> dict[str, Any]:
        number, row = self._places[name]
        with self._lock:
            batch = self._batch(number)
            return {column: batch[column][row].as_py() for column in _SCHEMA.names}

    @lru_cache(_KEPT)  # noqa: B019 - it lives no longer than a scan
    def _batch(self, number: int) -> pa.RecordBatch:
        batch = self._reader.get_batch(number)
        batch.validate(full=True)  # damaged bytes must not lead out of their buffers
        return batch


def save_known_parts(cache: Path, infos: Iterable[PartInfo], table_sha256: Mapping[str, str]) -> None:
    """Keep what these parts' tables said, as far as they were read; ``table_sha256``: of each by the part's name.

    Nothing is written where all of it is kept already. Where it can't be kept, the next run reads the tables.
    """
    read = [info for info in infos if info.table is not None]
    if all(info.table and info.table.sha256 for info in read) and len(read) == len(KnownParts(cache)):
        return
    try:
        make_folder(cache / DERIVED_FOLDER)
        with (
            replace_atomically(cache / DERIVED_FOLDER / _NAME) as file,
            pa.ipc.new_file(file, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer,
        ):
            left = iter(read)
            while some := list(islice(left, _BATCH)):
                rows = [_to_row(info, table_sha256[info.name]) for info in some]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
    except CacheError:
        return


def _to_row(info: PartInfo, sha256: str) -> dict[str, str]:
    assert info.table is not None
    row = {"name": info.name, "stamp": info.table.stamp, "sha256": sha256, "info": json.dumps(info_to_json(info))}
    return row | {"check": _check(row)}


def _check(row: Mapping[str, str]) -> str:
    """sha256 over the rest of a row: what it says goes into the index."""
    return hashlib.sha256("\0".join(row[name] for name in ("name", "stamp", "sha256", "info")).encode()).hexdigest()
