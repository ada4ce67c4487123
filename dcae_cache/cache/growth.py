"""A plan grown by what its source has gained, lost or changed since. Memory is that of a page, and some 50 bytes an
entry to compare keys by. Knows nothing of files or committed parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import SourceError
from .listing import LISTING, Listing
from .pages import Pages
from .plan import PLAN_SCHEMA, Plan, numbered

_RENEWED = ("location", "num_bytes", "mtime_ns")


@dataclass(frozen=True, slots=True)
class Changes:
    """What a new listing brings against the plan: counts of entries."""

    new: int
    changed: int
    vanished: int
    gone: frozenset[str] = frozenset()  # keys of the vanished ones


def grow_plan(plan: Plan, listing: Listing, part_size: int, *, prune: bool = False) -> tuple[Plan, Changes]:
    """The plan with the listing's new entries in new parts at its end, and changed entries' sizes and times renewed;
    the same plan where nothing has changed.

    Entries that vanished keep their place, unless ``prune`` drops them. Raises SourceError when no planned entry is
    left in the source at all.
    """
    found = np.concatenate([np.empty(0, np.int64), *_places(plan.pages, listing)])
    is_gone = found < 0
    vanished = int(is_gone.sum())
    if vanished == plan.num_entries and plan.num_entries:
        raise SourceError(
            f"None of the {plan.num_entries} planned samples is in this source. The cache was made from "
            f"{plan.origin.uri}: give that source, or another `out`."
        )
    renewed = _renewed(plan.pages, listing, found)
    changed = sum(_count_changes(*pair) for pair in zip(plan.pages, renewed, strict=True))
    is_new = np.ones(listing.num_rows, dtype=bool)
    is_new[found[~is_gone]] = False
    new = _kept(listing, is_new)
    gone = frozenset(key for page in _kept(plan.pages, is_gone) for key in page["key"].to_pylist())
    changes = Changes(new.num_rows, changed, vanished, gone)
    if not changed and not new.num_rows and not (prune and vanished):
        return plan, changes
    stays = _kept(renewed, ~is_gone) if prune else renewed
    first_free = max(plan.part_numbers, default=-1) + 1
    return Plan(Pages.joined([stays, numbered(new, first_free, part_size)]), plan.recipe, plan.origin), changes


def _places(planned: Pages, listing: Listing) -> list[NDArray[np.int64]]:
    """Where each planned entry is in the listing, page by page; -1 where it isn't there any more."""
    each, expected = [], 0
    for page in planned:
        places = listing.hashes.find(listing.hashes.of(page["key"]), expected)
        is_there = places >= 0
        same = pc.equal(listing.take(places[is_there])["key"], page["key"].filter(pa.array(is_there)))
        places[np.flatnonzero(is_there)[~np.asarray(same)]] = -1  # another key of the same number
        if len(places) and places[-1] >= 0:
            expected = int(places[-1]) + 1
        each.append(places)
    return each


def _renewed(planned: Pages, listing: Listing, found: NDArray[np.int64]) -> Pages:
    """The planned entries, with what the listing says of those that are in it now."""

    def page(number: int) -> pa.Table:
        old = planned.page(number)
        places = found[planned.offsets[number] : planned.offsets[number + 1]]
        is_gone = pa.array(places < 0)
        now = listing.take(np.maximum(places, 0)) if listing.num_rows else old.select(LISTING.names)
        columns = {name: pc.if_else(is_gone, old[name], now[name]) for name in _RENEWED}
        # A lower limit than last time takes nothing away: the larger one counts, None being the largest.
        most = pc.max_element_wise(old["max_samples"], now["max_samples"], skip_nulls=False)
        columns["max_samples"] = pc.if_else(is_gone, old["max_samples"], most)
        return pa.table({name: columns.get(name, old[name]) for name in PLAN_SCHEMA.names}, PLAN_SCHEMA)

    return Pages(PLAN_SCHEMA, np.diff(planned.offsets).tolist(), page)


def _count_changes(old: pa.Table, now: pa.Table) -> int:
    """Rows with another value in any column."""
    if old.equals(now):
        return 0
    is_changed = np.zeros(old.num_rows, dtype=bool)
    for name in (*_RENEWED, "max_samples"):
        was, is_now = (table[name] if name in _RENEWED else pc.fill_null(table[name], -1) for table in (old, now))
        is_changed |= np.asarray(pc.not_equal(was, is_now))
    return int(is_changed.sum())


def _kept(pages: Pages, stays: NDArray[np.bool_]) -> Pages:
    """The rows for which ``stays`` is true."""
    so_far = np.concatenate([[0], np.cumsum(stays, dtype=np.int64)])
    return Pages(pages.schema, np.diff(so_far[pages.offsets]).tolist(), partial(_filtered, pages, stays))


def _filtered(pages: Pages, stays: NDArray[np.bool_], number: int) -> pa.Table:
    here = stays[pages.offsets[number] : pages.offsets[number + 1]]
    return pages.page(number).filter(pa.array(here))
