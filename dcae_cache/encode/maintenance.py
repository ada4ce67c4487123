"""Finished parts looked after: broken ones taken back, captions read again, unplanned ones removed.

No latent is written. Knows nothing of models, devices or other processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from ..cache.commits import split_by_commit
from ..cache.finalize import describe, write_index
from ..cache.index import load_index
from ..cache.integrity import check_integrity
from ..cache.parts import PARTS_FOLDER, PartInfo, read_rows, table_path, write_table
from ..cache.plan import Plan
from ..errors import CacheError, SampleSkipped
from ..files import sync_folder
from ..loading.rows import described, load_sample
from ..records import Part, Row, part_name, part_number
from ..sources import Source
from .run import Run

_NOTES = ("caption", "label", "attributes")
_FIELDS = tuple(item.name for item in fields(Row))


def refresh_part(cache: Path, source: Source, part: Part, info: PartInfo) -> int:
    """Bring a part's table up to date with the source; returns how many rows changed.

    A row whose image can't be read now, or is another one, stays as it is. Raises SourceError and CacheError.
    """
    rows = [Row(**{name: values[name] for name in _FIELDS}) for values in read_rows(cache, part.name).to_pylist()]
    places = {row.key: place for place, row in enumerate(rows)}
    changed = 0
    for ref in source.read(part):
        if ref.key not in places:
            continue
        try:
            now = described(load_sample(ref))
        except (SampleSkipped, OSError):
            continue
        row = rows[places[ref.key]]
        notes = {name: now[name] for name in _NOTES}
        if row.source_hash == now["source_hash"] and notes != {name: getattr(row, name) for name in _NOTES}:
            rows[places[ref.key]] = replace(row, **notes)
            changed += 1
    if changed:
        write_table(cache, info, rows)
    return changed


def discard_broken_parts(run: Run, plan: Plan, notify: Callable[[str], None]) -> None:
    """Take back the commit of parts whose files aren't, byte for byte, what was written: they are made anew."""
    notify("Checking every part's hashes.")
    try:
        load_index(run.cache)
    except CacheError:  # it is derived from the parts, and is needed to check them
        infos = split_by_commit(plan, run.cache, run.fingerprint)[0]
        write_index(run.cache, describe(run.cache, plan, run.recipe, infos), infos)
    findings = check_integrity(run.cache)
    broken = sorted({finding.where for finding in findings} & {part_name(number) for number in plan.part_numbers})
    for name in broken:
        table_path(run.cache, name).unlink(missing_ok=True)
    if broken:
        notify(f"{len(broken)} parts are broken and are made anew, the first: {broken[0]}.")


def refresh_tables(run: Run, plan: Plan, done: list[PartInfo], notify: Callable[[str], None]) -> None:
    """Bring the tables of finished parts up to date with the source."""
    changed = sum(refresh_part(run.cache, run.source, plan.part(part_number(info.name)), info) for info in done)
    notify(f"Read the captions, labels and attributes of {len(done)} parts again: {changed} rows changed.")


def remove_unplanned(run: Run, plan: Plan) -> None:
    """Remove the parts that pruning has left without entries."""
    planned = {part_name(number) for number in plan.part_numbers}
    for path in sorted((run.cache / PARTS_FOLDER).glob("part-*")):  # the table, which commits a part, goes first
        if path.stem not in planned:
            path.unlink()
    sync_folder(run.cache / PARTS_FOLDER)
