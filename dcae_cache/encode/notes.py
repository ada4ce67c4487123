"""Captions, labels and attributes that have changed since their part was made: read again into the tables.

Whole parts at a time, so that none holds old and new ones. Latents are neither read nor written. Knows nothing of
models or images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from ..cache.ledger_file import load_stamps, save_stamps
from ..cache.locks import planning
from ..cache.parts import PartInfo, read_rows, write_table
from ..cache.plan import Plan
from ..errors import SampleSkipped
from ..loading.rows import noted
from ..records import Part, Row, part_name, part_number
from ..sources import Source
from .run import Run

_FIELDS = tuple(item.name for item in fields(Row))


def refresh_notes(run: Run, plan: Plan, done: Sequence[PartInfo], todo: Sequence[int]) -> tuple[list[PartInfo], int]:
    """Bring the tables of those finished parts up to date whose captions have changed, of all parts with
    ``refresh_metadata``; returns the finished parts as they are now, and how many rows changed.

    Stamps of the parts still to be made are taken now, before these are read: what changes meanwhile is found by the
    next run.
    """
    with planning(run.cache):
        known = load_stamps(run.cache)
    stamps = {part_name(number): run.source.notes_stamp(plan.entries(number)) for number in todo}
    infos, changed = [], 0
    for info in done:
        number = part_number(info.name)
        stamp = stamps[info.name] = run.source.notes_stamp(plan.entries(number))
        is_stale = known.get(info.name, "" if run.source.notes_apart else stamp) != stamp
        if is_stale or run.options.refresh_metadata:
            info, rows = refresh_part(run.cache, run.source, plan.part(number), info)
            changed += rows
        infos.append(info)
    with planning(run.cache):
        planned = set(map(part_name, plan.part_numbers)) if run.options.prune else None
        now = load_stamps(run.cache) | stamps
        now = {name: stamp for name, stamp in now.items() if planned is None or name in planned}
        if now != known:
            save_stamps(run.cache, now)
    return infos, changed


def refresh_part(cache: Path, source: Source, part: Part, info: PartInfo) -> tuple[PartInfo, int]:
    """Bring a part's table up to date with the source; returns its info, and how many rows changed.

    A row of which nothing can be read now stays as it is. Raises SourceError and CacheError.
    """
    rows = [Row(**{name: values[name] for name in _FIELDS}) for values in read_rows(cache, part.name).to_pylist()]
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.image_key, []).append(place)
    changed = 0
    for ref in source.read(part):
        if ref.key not in places:
            continue
        try:
            now = noted(ref.notes())
        except (SampleSkipped, OSError):
            continue
        for place in places[ref.key]:
            row = rows[place]
            if now != {name: getattr(row, name) for name in now}:
                rows[place] = replace(row, **now)
                changed += 1
    return (write_table(cache, info, rows), changed) if changed else (info, 0)
