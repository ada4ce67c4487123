"""Captions, labels and attributes read again into the tables of finished parts; latents are neither read nor written.

Knows nothing of models or images.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from ..cache.parts import PartInfo, read_rows, write_table
from ..errors import SampleSkipped
from ..loading.batches import described, load_sample
from ..records import Part, Row
from ..sources import Source

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
