"""A plan grows with its source, and no planned entry ever changes its part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcae_cache.cache.growth import grow_plan
from dcae_cache.cache.listing import list_entries
from dcae_cache.cache.plan import entries_digest, make_plan
from dcae_cache.errors import SourceError
from dcae_cache.records import Entry, Origin
from helpers.plans import entry, keys_by_part, plan_of


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


def test_an_unchanged_source_gives_the_same_plan() -> None:
    plan = plan_of("a", "b", "c")
    grown, changes = grow_plan(plan, list_entries(map(entry, "cab")), 2)
    assert grown is plan
    assert (changes.new, changes.changed, changes.vanished) == (0, 0, 0)


def test_pruning_drops_what_is_gone() -> None:
    grown, changes = grow_plan(plan_of("a", "b", "c", "d"), list_entries(map(entry, "ade")), 2, prune=True)
    assert keys_by_part(grown) == {0: ["a"], 1: ["d"], 2: ["e"]}
    assert (changes.new, changes.vanished, changes.gone) == (1, 2, frozenset("bc"))


def test_a_lower_limit_takes_nothing_away() -> None:
    def limited(key: str, most: int | None) -> Entry:
        return entry(key)._replace(max_samples=most)

    plan = make_plan(list_entries([limited("a", 3), limited("b", None), limited("c", 2)]), {}, Origin(""), 3)
    grown, changes = grow_plan(plan, list_entries([limited("a", 2), limited("b", 1), limited("c", None)]), 3)
    assert [item.max_samples for item in grown.part(0).entries] == [3, None, None]
    assert changes.changed == 1


@given(
    st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(1, 3), min_size=1),
    st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(1, 3), min_size=1),
    st.integers(1, 5),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_growth_in_pages_is_growth_of_sets(
    before: dict[str, int], now: dict[str, int], page_rows: int, prune: bool, random: object
) -> None:
    """Against the same thing said with dictionaries, for listings in any order and keys whose numbers clash."""
    order = list(now)
    random.shuffle(order)  # type: ignore[attr-defined]
    kept = [key for key in before if key in now]
    number_of = {key: number for number, key in enumerate(order)}
    entries = (entry(key, now[key]) for key in order)
    listing = list_entries(entries, page_rows, lambda text: number_of.get(text, 0))  # what is gone clashes with a key
    plan = make_plan(list_entries((entry(*each) for each in before.items()), page_rows), {}, Origin(""), 2)
    if not kept:
        with pytest.raises(SourceError, match="None of the"):
            grow_plan(plan, listing, 2, prune=prune)
        return
    grown, changes = grow_plan(plan, listing, 2, prune=prune)
    planned = {item.key: item.num_bytes for part in grown.parts() for item in part.entries}
    assert planned == {key: now.get(key, size) for key, size in before.items() if key in now or not prune} | now
    assert changes.new == len(now) - len(kept)
    assert changes.changed == sum(before[key] != now[key] for key in kept)
    assert changes.gone == frozenset(before) - frozenset(now)
