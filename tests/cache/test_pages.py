"""Tables in pages give what the whole table gives, whatever the pages are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from dcae_cache.cache.pages import PAGE_ROWS, Pages
from dcae_cache.cache.tables import BoundedFile

_COUNTS = st.lists(st.integers(min_value=0, max_value=5), max_size=6)


def paged(counts: list[int]) -> tuple[Pages, pa.Table]:
    """A table of numbers in pages of these many rows, and the same table whole."""
    table = pa.table({"number": pa.array(range(sum(counts)), pa.int64())})
    starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
    return Pages(table.schema, counts, lambda number: table.slice(starts[number], counts[number])), table


@given(_COUNTS, st.data())
def test_any_rows_are_those_of_the_whole_table(counts: list[int], data: st.DataObject) -> None:
    pages, table = paged(counts)
    assert (pages.num_rows, pages.whole()) == (table.num_rows, table)
    start = data.draw(st.integers(0, table.num_rows))
    stop = data.draw(st.integers(start, table.num_rows))
    assert pages.rows(start, stop) == table.slice(start, stop - start)
    if table.num_rows:
        places = data.draw(st.lists(st.integers(0, table.num_rows - 1), max_size=12))
        assert pages.take(np.array(places, np.int64)) == table.take(pa.array(places, pa.int64()))


@given(_COUNTS, _COUNTS)
def test_joined_tables_follow_each_other(first: list[int], second: list[int]) -> None:
    (one, table), (other, more) = paged(first), paged(second)
    joined = Pages.joined([one, other])
    assert joined.whole() == pa.concat_tables([table, more])
    assert joined.rows(0, joined.num_rows) == joined.whole()


def test_a_table_is_written_in_even_groups_however_it_was_paged(tmp_path: Path) -> None:
    pages, table = paged([1, 0, PAGE_ROWS, 5, PAGE_ROWS + 7])
    path = tmp_path / "table.parquet"
    with pq.ParquetWriter(path, table.schema) as writer:
        pages.write(writer)
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [PAGE_ROWS] * 2 + [
        table.num_rows - 2 * PAGE_ROWS
    ]
    file = BoundedFile(path)
    again = Pages(file.schema, file.counts, file.group)
    assert again.whole() == table
    assert again.rows(PAGE_ROWS - 3, PAGE_ROWS + 3) == table.slice(PAGE_ROWS - 3, 6)


def test_only_the_pages_asked_for_are_made() -> None:
    made: list[int] = []

    def make(number: int) -> pa.Table:
        made.append(number)
        return pa.table({"number": [number]})

    pages = Pages(pa.schema([("number", pa.int64())]), [1] * 100, make)
    assert pages.rows(40, 42)["number"].to_pylist() == [40, 41]
    assert pages.rows(41, 42)["number"].to_pylist() == [41]
    assert made == [40, 41]
