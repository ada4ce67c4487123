"""ledger.json: what was read of the source and what was not, derived from its listing and from the committed parts.

notes.json beside it holds, of each part, what tells that captions have changed since its table was written. Losing
either loses nothing but what the next run writes anew. Knows nothing of sources.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import replace_atomically
from ..ledger import Counts, Ledger
from .parts import PartInfo

LEDGER_NAME, STAMPS_NAME = "ledger.json", "notes.json"


def note_listing(cache: Path, listed: Counts | None) -> None:
    """Keep what was met while the source was listed, for whoever writes the ledger in the end."""
    _write(cache / LEDGER_NAME, {**_read(cache / LEDGER_NAME), "listed": listed.to_json() if listed else None})


def write_ledger(cache: Path, infos: Iterable[PartInfo]) -> None:
    """Write the ledger over these committed parts and the latest listing."""
    total = build_ledger(cache, infos)
    _write(cache / LEDGER_NAME, {"listed": _read(cache / LEDGER_NAME).get("listed"), "total": total.to_json()})


def build_ledger(cache: Path, infos: Iterable[PartInfo]) -> Ledger:
    """The ledger over these committed parts and the latest listing.

    Where a listing counts no images (it names input tars) they are those of the parts; a part that has met nothing
    but images and what belongs to them says no more than its number of samples.
    """
    listed = _read(cache / LEDGER_NAME).get("listed")
    parts = list(infos)
    met = [Counts.from_json(listed)] if listed else []
    for part in parts:
        if part.met is not None:
            met.append(part.met)
        if not listed and (part.met is None or not part.met.found):
            number = part.num_images - part.skipped.get("damaged", 0)
            met.append(Counts(found=number, images=number))
    return Ledger(
        counts=Counts.total(met),
        samples=sum(part.num_images for part in parts),
        with_caption=sum(part.with_caption for part in parts),
        with_label=sum(part.with_label for part in parts),
    )


def load_ledger(cache: Path) -> Ledger | None:
    """The ledger of a cache; None for one of an earlier release, or where it is damaged."""
    try:
        return Ledger.from_json(_read(cache / LEDGER_NAME)["total"])
    except (KeyError, TypeError, ValueError):
        return None


def load_stamps(cache: Path) -> dict[str, str]:
    """Part -> what its captions were read from, as far as it is known."""
    return {str(name): str(stamp) for name, stamp in _read(cache / STAMPS_NAME).items()}


def save_stamps(cache: Path, stamps: Mapping[str, str]) -> None:
    """Replace the stamps."""
    _write(cache / STAMPS_NAME, dict(sorted(stamps.items())))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with replace_atomically(path) as file:
        file.write(json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
