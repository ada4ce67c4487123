"""Opens the rows file of a cache, and makes it first where there is none or the tables have changed.

Safe for many processes at once: one makes the file, the others wait. Knows nothing of latents.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..cache.locks import alone
from ..cache.recipe import resolution_of
from ..cache.rows_file import FILE_SCHEMA, RowsFile, write_rows_file
from ..errors import CacheError
from .store import PartStore

_STAMP_DIGITS = 32


def rows_path(store: PartStore, index: dict[str, Any]) -> Path:
    """Where the rows file of this state of the cache is, or will be."""
    columns = FILE_SCHEMA.to_string(truncate_metadata=False)  # this release's
    stamp = hashlib.sha256(f"{store.stamp(index)} {columns}".encode()).hexdigest()
    return store.derived() / f"rows-{stamp[:_STAMP_DIGITS]}.arrow"


def open_rows(store: PartStore, index: dict[str, Any]) -> RowsFile:
    """The rows of a cache. Raises CacheError for a damaged table, or where there is no room for the file."""
    path = rows_path(store, index)
    if not path.exists():
        with ExitStack() as held:
            try:
                held.enter_context(alone(path.with_name(".lock")))
            except CacheError:  # a file system without locks: then several may make it, each its own
                held.close()
            if not path.exists():
                _remove_others(path)
                write_rows_file(path, index["parts"], store.table, resolution_of(index["recipe"]))
    return RowsFile(path)


def _remove_others(path: Path) -> None:
    """Files of earlier states, and what killed processes left: who reads them still keeps them mapped."""
    for pattern in ("rows-*.arrow", ".rows-*.tmp"):
        for other in path.parent.glob(pattern):
            other.unlink(missing_ok=True)
