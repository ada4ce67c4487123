"""The plan: parts are fixed once planned, whatever the source does later."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcae_cache.cache.listing import list_entries
from dcae_cache.cache.pages import Pages
from dcae_cache.cache.plan import PLAN_SCHEMA, Plan, entries_digest, load_plan, make_plan
from dcae_cache.errors import CacheError
from dcae_cache.records import Entry, Origin
from helpers.plans import entry, keys_by_part, plan_of


def test_parts_are_runs_of_the_listing() -> None:
    plan = plan_of("a", "b", "c", "d", "e")
    assert keys_by_part(plan) == {0: ["a", "b"], 1: ["c", "d"], 2: ["e"]}
    assert [part.name for part in plan.parts()] == ["part-000000", "part-000001", "part-000002"]


def test_saved_and_loaded(tmp_path: Path) -> None:
    plan = plan_of("a", "b", "c")
    plan.save(tmp_path)
    loaded = load_plan(tmp_path)
    assert loaded is not None
    assert (loaded.table, loaded.recipe, loaded.origin) == (plan.table, plan.recipe, plan.origin)
    assert load_plan(tmp_path / "nowhere") is None


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", b"\0" * 200])
def test_a_damaged_plan_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.parquet").write_bytes(content)
    with pytest.raises(CacheError, match=r"plan\.parquet can't be read as a plan"):
        load_plan(tmp_path)


def test_a_foreign_parquet_file_is_no_plan(tmp_path: Path) -> None:
    pq.write_table(plan_of("a").table, tmp_path / "plan.parquet")
    with pytest.raises(CacheError, match="can't be read as a plan"):
        load_plan(tmp_path)


def test_a_parts_digest_needs_no_entries_as_objects(tmp_path: Path) -> None:
    """The text hashed is JSON: quotes, line ends and letters beyond ASCII are escaped as the json module does."""
    entries = [Entry('a"b\\\n', "é\U0001f600.jpg", -1, 5), Entry("b", "b.jpg", 2, 3, 7)]
    plan = make_plan(list_entries(entries), {}, Origin(""), 2)
    text = "".join(json.dumps([value for value in each if value is not None]) for each in entries)
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert plan.digest(0) == entries_digest(plan.part(0)) == expected


@given(st.data())
def test_digests_are_those_of_the_entries(data: st.DataObject) -> None:
    """Whatever the texts hold, and wherever pages end."""
    text = st.one_of(
        st.text(st.characters(exclude_categories=("Cs",))), st.sampled_from(['"', "\\", "\x7f", "", "a/b"])
    )
    number = st.integers(-1, 2**63 - 1)
    keys = data.draw(st.lists(text, min_size=1, max_size=12, unique=True))
    entries = [
        Entry(key, *(data.draw(kind) for kind in (text, number, number, st.one_of(st.none(), number)))) for key in keys
    ]
    page_rows, part_size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    plan = make_plan(list_entries(entries, page_rows), {}, Origin(""), part_size)
    assert [plan.digest(number) for number in plan.part_numbers] == [entries_digest(part) for part in plan.parts()]


def test_the_largest_part_is_taken_first() -> None:
    sizes = [3, 9, -1, 9, 1, 1]
    plan = make_plan(list_entries(entry(str(n), size) for n, size in enumerate(sizes)), {}, Origin(""), 1)
    assert plan.largest_first([0, 1, 2, 3, 4]) == [1, 3, 0, 4, 2]
    assert plan.count_entries([1, 4]) == 2


def test_a_plan_is_read_page_by_page(tmp_path: Path) -> None:
    """A part is read from the row group that holds it, and a damaged one is named when it is asked for."""
    plan = make_plan(list_entries(entry(f"{n:06d}") for n in range(140_000)), {}, Origin("x"), 1000)
    plan.save(tmp_path)
    path = tmp_path / "plan.parquet"
    content = bytearray(path.read_bytes())
    place = pq.read_metadata(path).row_group(2).column(1).data_page_offset  # the keys of the last page
    content[place : place + 2000] = b"\xff" * 2000
    path.write_bytes(content)
    loaded = load_plan(tmp_path)
    assert loaded is not None
    assert loaded.num_parts == 140
    assert loaded.part(64).entries[0].key == "064000"
    assert [item.key for item in loaded.entries(65)] == [f"{n:06d}" for n in range(65_000, 66_000)]
    with pytest.raises(CacheError, match=r"plan\.parquet can't be read as a plan"):
        loaded.part(139)
    with pytest.raises(CacheError, match=r"plan\.parquet can't be read as a plan"):
        loaded.read_through()


def test_a_plan_whose_parts_are_out_of_order_is_no_plan(tmp_path: Path) -> None:
    table = plan_of("a", "b", "c", part_size=1).table
    shuffled = table.set_column(0, PLAN_SCHEMA.field(0), pa.array(np.int32([1, 0, 2])))
    Plan(Pages.of_table(shuffled), {}, Origin("")).save(tmp_path)
    with pytest.raises(CacheError, match="its parts are not in order"):
        load_plan(tmp_path)
