"""Entries and plans of a few keys."""

from __future__ import annotations

from dcae_cache.cache.listing import list_entries
from dcae_cache.cache.plan import Plan, make_plan
from dcae_cache.records import Entry, Origin


def entry(key: str, num_bytes: int = 1) -> Entry:
    return Entry(key, f"{key}.jpg", num_bytes, 100)


def keys_by_part(plan: Plan) -> dict[int, list[str]]:
    return {part.number: [item.key for item in part.entries] for part in plan.parts()}


def plan_of(*keys: str, part_size: int = 2) -> Plan:
    return make_plan(list_entries(map(entry, keys)), {"a": 1}, Origin("/photos"), part_size)
