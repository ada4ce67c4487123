"""The rows of all parts in one memory-mapped Arrow file, so that any row is a look-up in mapped memory.

Derived from the tables and safe to delete. One line per stored sample, in the order in which readers number them;
columns as in the tables, and `key_hash`: the first 8 bytes of the sha256 of the image's key, big-endian. What batches
are mostly asked for stands in packed columns once more (packed.py). All record batches but the last have
ROWS_PER_BATCH rows. Knows nothing of tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import CacheError, UsageError, one_line
from ..files import sync_folder, write_failed
from .mapped_columns import MappedColumns
from .packed import packed_numbers, packed_texts, with_packed
from .parts import TABLE_SCHEMA, read_table

DERIVED_FOLDER = ".derived"  # inside a cache: files made from it for readers, safe to delete at any time
ATTRIBUTES = "attributes."  # prefix of the name of a value out of the column of that name
KEY_HASH = "key_hash"
ROWS_PER_BATCH = 2**17
_READERS = 4


def _type(field: pa.Field) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(field.type) else field.type  # 2 GiB of text a batch aren't enough


ROWS_SCHEMA = pa.schema(
    [*(pa.field(field.name, _type(field)) for field in TABLE_SCHEMA), pa.field(KEY_HASH, pa.uint64())]
)
FILE_SCHEMA = pa.schema(
    [
        *ROWS_SCHEMA,
        packed_texts("texts", ("key", "caption", "label")),
        packed_numbers("numbers", [field.name for field in ROWS_SCHEMA if field.type == pa.int32()]),
    ]
)


def write_rows_file(
    path: Path, parts: Sequence[dict[str, Any]], table_of: Callable[[str], Path], resolution: int | None = None
) -> None:
    """Write the rows of the parts, as the index lists them, to ``path``: whole or not at all. ``resolution``: of the
    rows that don't say theirs.

    Several processes may do so at the same time: each writes a file of its own, and the last one stays. Raises
    CacheError for a table that is damaged or isn't that of the index, and where the file can't be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            with pa.ipc.new_file(file, FILE_SCHEMA) as writer:
                for batch in _evenly(_tables(parts, partial(_ordered, table_of=table_of, resolution=resolution))):
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise CacheError(write_failed(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _tables(parts: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], pa.Table]) -> Iterator[pa.Table]:
    """Each part's stored samples, in order; some are read ahead."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="rows") as pool:
        waiting = iter(parts)
        ahead = [pool.submit(read, part) for part in islice(waiting, 2 * _READERS)]
        while ahead:
            yield ahead.pop(0).result()
            ahead += [pool.submit(read, part) for part in islice(waiting, 1)]


def _ordered(part: dict[str, Any], table_of: Callable[[str], Path], resolution: int | None) -> pa.Table:
    path = table_of(part["name"])
    table = read_table(path)
    table = table.filter(pc.equal(table["status"], "ok"))
    heights, widths, rows = (table[name].to_numpy() for name in ("bucket_height", "bucket_width", "row"))
    table = table.take(np.lexsort((rows, widths, heights)))
    found = dict(sorted(Counter(zip(heights.tolist(), widths.tolist(), strict=True)).items()))
    counts = {f"{height}x{width}": count for (height, width), count in found.items()}
    if counts != part["buckets"]:
        raise CacheError(
            f"{path} holds samples of buckets {counts}, index.json says {part['buckets']}. Running encode again "
            "rebuilds the index; verify tells what is damaged."
        )
    place, field = table.schema.get_field_index("resolution"), TABLE_SCHEMA.field("resolution")
    table = table.set_column(place, field, pc.coalesce(table[place], pa.scalar(resolution, field.type)))
    keys = pc.coalesce(table["image"], table["key"]).to_pylist()
    hashes = np.array([key_hash(key) for key in keys], np.uint64)
    return with_packed(table.append_column(KEY_HASH, pa.array(hashes, pa.uint64())), FILE_SCHEMA)


def key_hash(key: str) -> int:
    """The first 8 bytes of the key's sha256, as a big-endian number: what splits go by."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _evenly(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Batches of ROWS_PER_BATCH rows, and a last one of what is left."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        while count >= ROWS_PER_BATCH:
            joined = pa.concat_tables(waiting)
            yield from joined.slice(0, ROWS_PER_BATCH).combine_chunks().to_batches()
            waiting = [joined.slice(ROWS_PER_BATCH)]
            count -= ROWS_PER_BATCH
    if count:
        yield from pa.concat_tables(waiting).combine_chunks().to_batches()


class RowsFile:
    """A rows file, mapped: nothing of it is read before it is asked for, and all processes share the memory.

    Raises CacheError where there is no such file, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as opened:
                file = mmap(opened.fileno(), 0, access=ACCESS_READ)
            reader = pa.ipc.open_file(pa.py_buffer(file))
            if not reader.schema.equals(FILE_SCHEMA, check_metadata=True):
                raise ValueError("its columns are those of another release")
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise CacheError(f"{path} can't be read: {one_line(error)}. Delete it: it is made anew.") from error
        self._columns = MappedColumns(self._batches, file, ROWS_PER_BATCH)

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self._batches)

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns as a whole, without a copy; ``attributes.NAME`` is read out of the JSON, line by line."""
        table = pa.Table.from_batches(self._batches, FILE_SCHEMA)
        return pa.table({name: self._column(table, name) for name in columns})

    def take(self, columns: Sequence[str], numbers: NDArray[np.int64]) -> dict[str, list[Any] | NDArray[Any]]:
        """The columns' values in the given lines: numbers as arrays (missing: -1), text as lists (missing: "").

        ``attributes.NAME`` gives the values of that name (missing: None). Raises UsageError for an unknown column.
        """
        wanted = tuple(columns)
        stored = self._columns.take(_stored(wanted), numbers)
        return {
            name: stored[name] if name in stored else [_attribute(text, name) for text in stored["attributes"]]
            for name in wanted
        }

    def _column(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        if not name.startswith(ATTRIBUTES):
            check_columns([name])
            return table[name]
        values = [_attribute(text, name) for text in table["attributes"].to_pylist()]
        try:
            return pa.chunked_array([pa.array(values)])
        except pa.ArrowException as error:
            raise UsageError(f"{name} can't be used as a column: {one_line(error)}.") from error


def check_columns(columns: Iterable[str]) -> None:
    """UsageError naming the first that is no column."""
    for name in columns:
        if name not in ROWS_SCHEMA.names and not name.startswith(ATTRIBUTES):
            known = ", ".join(column for column in ROWS_SCHEMA.names if column != KEY_HASH)
            raise UsageError(f"No column {name!r}; there are {known}, and attributes.NAME.")


@lru_cache
def _stored(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of the file that columns are read from. UsageError naming the first that is none."""
    check_columns(columns)
    return tuple("attributes" if name.startswith(ATTRIBUTES) else name for name in columns)


def _attribute(text: str | None, column: str) -> Any:
    return json.loads(text).get(column.removeprefix(ATTRIBUTES)) if text else None
