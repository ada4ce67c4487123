"""Look-ups in mapped columns give what Arrow's own give, whatever is missing or empty."""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcae_cache.cache.mapped_columns import MappedColumns

SCHEMA = pa.schema(
    {
        "name": pa.large_string(),
        "note": pa.large_string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "size": pa.int64(),
        "hash": pa.uint64(),
    }
)
NAMES = tuple(SCHEMA.names)
TEXT = st.none() | st.text(max_size=12)
ROW = st.tuples(
    *(st.text(max_size=5), TEXT),
    *(st.none() | st.integers(-(2**31), 2**31 - 1), st.none() | st.integers(0, 5)),
    *(st.none() | st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)),
)


def mapped(path: Path, rows: list[tuple[Any, ...]], rows_per_batch: int) -> MappedColumns:
    table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
    with pa.ipc.new_file(str(path), SCHEMA) as writer:
        for start in range(0, len(rows), rows_per_batch):
            writer.write_batch(table.slice(start, rows_per_batch).combine_chunks().to_batches()[0])
    with path.open("rb") as file:
        view = mmap(file.fileno(), 0, access=ACCESS_READ)
    reader = pa.ipc.open_file(pa.py_buffer(view))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    return MappedColumns(batches, view, rows_per_batch)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=1, max_size=12), st.integers(1, 5), st.data())
def test_any_lines_of_any_columns(
    tmp_path: Path, rows: list[tuple[Any, ...]], rows_per_batch: int, data: st.DataObject
) -> None:
    columns = mapped(tmp_path / "rows.arrow", rows, rows_per_batch)
    lines = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=20))
    names = tuple(data.draw(st.permutations(NAMES))[: data.draw(st.integers(1, len(NAMES)))])
    found = columns.take(names, np.array(lines))
    assert set(found) == set(names)
    for name in names:
        values = [rows[line][NAMES.index(name)] for line in lines]
        missing = "" if pa.types.is_large_string(SCHEMA.field(name).type) else -1
        assert list(found[name]) == [missing if value is None else value for value in values]
