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
from dcae_cache.cache.packed import packed_numbers, packed_texts, with_packed

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
PACKED = pa.schema([*SCHEMA, packed_texts("texts", ("note", "name")), packed_numbers("sides", ("height", "width"))])
TEXT = st.none() | st.text(max_size=12) | st.text("a\0", max_size=3)
ROW = st.tuples(
    *(st.text(max_size=5), TEXT),
    *(st.none() | st.integers(-(2**31), 2**31 - 1), st.none() | st.integers(0, 5)),
    *(st.none() | st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)),
)


def mapped(path: Path, rows: list[tuple[Any, ...]], rows_per_batch: int, schema: pa.Schema) -> MappedColumns:
    table = with_packed(pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA), schema)
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, len(rows), rows_per_batch):
            writer.write_batch(table.slice(start, rows_per_batch).combine_chunks().to_batches()[0])
    return opened(path, rows_per_batch)


def opened(path: Path, rows_per_batch: int) -> MappedColumns:
    with path.open("rb") as file:
        view = mmap(file.fileno(), 0, access=ACCESS_READ)
    reader = pa.ipc.open_file(pa.py_buffer(view))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    return MappedColumns(batches, view, rows_per_batch)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=1, max_size=12), st.integers(1, 5), st.sampled_from([SCHEMA, PACKED]), st.data())
def test_any_lines_of_any_columns(
    tmp_path: Path, rows: list[tuple[Any, ...]], rows_per_batch: int, schema: pa.Schema, data: st.DataObject
) -> None:
    columns = mapped(tmp_path / "rows.arrow", rows, rows_per_batch, schema)
    lines = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=20))
    names = tuple(data.draw(st.permutations(NAMES))[: data.draw(st.integers(1, len(NAMES)))])
    found = columns.take(names, np.array(lines))
    assert set(found) == set(names)
    for name in names:
        values = [rows[line][NAMES.index(name)] for line in lines]
        missing = "" if pa.types.is_large_string(SCHEMA.field(name).type) else -1
        assert list(found[name]) == [missing if value is None else value for value in values]


def test_each_row_of_a_packed_column() -> None:
    table = pa.table([["a", "b"], ["one", None], [1, None], [2, 5], [3, None], [4, 6]], schema=SCHEMA)
    packed = with_packed(table, PACKED)
    assert packed.schema.equals(PACKED, check_metadata=True)
    assert packed["texts"].to_pylist() == ["one\0a\0", "\0b\0"]
    assert packed["sides"].to_pylist() == [[2, 1], [5, -1]]
    assert packed.select(NAMES).equals(table)


def test_a_packed_column_is_read_where_it_holds_several_of_those_asked_for(tmp_path: Path) -> None:
    """Shown by a file whose packed columns tell something else."""
    table = pa.table([["a"], ["one"], [1], [2], [3], [4]], schema=SCHEMA)
    packed = with_packed(table, PACKED)
    place = packed.schema.get_field_index("texts")
    packed = packed.set_column(place, PACKED.field("texts"), pa.array(["two\0b\0"], pa.large_string()))
    path = tmp_path / "rows.arrow"
    with pa.ipc.new_file(str(path), PACKED) as writer:
        writer.write_table(packed)
    columns = opened(path, 1)
    assert columns.take(("name", "note"), np.array([0])) == {"name": ["b"], "note": ["two"]}
    assert columns.take(("name",), np.array([0])) == {"name": ["a"]}
