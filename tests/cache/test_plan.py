"""The plan: parts are fixed once planned, whatever the source does later."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcae_cache.cache.growth import grow_plan
from dcae_cache.cache.listing import list_entries
from dcae_cache.cache.plan import Plan, entries_digest, load_plan, make_plan
from dcae_cache.errors import CacheError, SourceError
from dcae_cache.records import Entry, Origin


def entry(key: str, num_bytes: int = 1) -> Entry:
    return Entry(key, f"{key}.jpg", num_bytes, 100)


def keys_by_part(plan: Plan) -> dict[int, list[str]]:
    return {part.number: [item.key for item in part.entries] for part in plan.parts()}


def plan_of(*keys: str, part_size: int = 2) -> Plan:
    return make_plan(list_entries(map(entry, keys)), {"a": 1}, Origin("/photos"), part_size)


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


def test_duplicate_keys_name_both_places() -> None:
    twins = [entry("a"), entry("b")._replace(location="b.jpg"), entry("b")._replace(location="b.png")]
    with pytest.raises(SourceError, match=r"'b': b\.jpg and b\.png"):
        list_entries(twins)


def test_growth_keeps_parts_and_appends_new_ones() -> None:
    plan = plan_of("b", "d", "f")
    listing = list_entries(map(entry, "abcdef"))
    grown, changes = grow_plan(plan, listing, 2)
    assert keys_by_part(grown) == {0: ["b", "d"], 1: ["f"], 2: ["a", "c"], 3: ["e"]}
    assert (changes.new, changes.changed, changes.vanished) == (3, 0, 0)


def test_changed_entries_change_their_parts_digest_only() -> None:
    plan = plan_of("a", "b", "c", "d")
    listing = list_entries([entry("a"), entry("b", 2), entry("c")])
    grown, changes = grow_plan(plan, listing, 2)
    assert (changes.new, changes.changed, changes.vanished) == (0, 1, 1)
    same = [entries_digest(a) == entries_digest(b) for a, b in zip(plan.parts(), grown.parts(), strict=True)]
    assert same == [False, True]
    assert keys_by_part(grown) == keys_by_part(plan)


def test_a_source_without_any_planned_sample_is_refused() -> None:
    with pytest.raises(SourceError, match="None of the 2 planned samples"):
        grow_plan(plan_of("a", "b"), list_entries([entry("z")]), 2)


@given(
    st.lists(st.sets(st.sampled_from("abcdefghij"), min_size=1), min_size=1, max_size=5),
    st.integers(min_value=1, max_value=4),
)
def test_any_history_keeps_every_planned_key_in_its_part(listings: list[set[str]], part_size: int) -> None:
    plan, places = None, {}
    for keys in listings:
        listing = list_entries(map(entry, sorted(keys)))
        if plan is None:
            plan = make_plan(listing, {}, Origin(""), part_size)
        elif not keys & set(places):
            continue
        else:
            plan, _ = grow_plan(plan, listing, part_size)
        now = {key: number for number, part in keys_by_part(plan).items() for key in part}
        assert places.items() <= now.items()
        assert keys <= now.keys()
        assert all(len(part) <= part_size for part in keys_by_part(plan).values())
        places = now
