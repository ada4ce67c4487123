"""Are the keys of a cache unique? For sources whose keys are known only once they are read (input tars).

Knows nothing of plans or sources.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow.compute as pc

from ..errors import SourceError
from .key_hashes import KeyHashes
from .parts import read_rows


def refuse_duplicate_keys(cache: Path, parts: Iterable[str]) -> None:
    """Raise SourceError, naming both places, where two committed samples have the same key."""
    names = list(parts)
    repeated = KeyHashes(lambda: (read_rows(cache, name)["key"] for name in names)).repeated
    if not repeated:
        return
    key = repeated[0]
    places = [place for name in names for place in _places(cache, name, key)]
    raise SourceError(
        f"{len(repeated)} keys are not unique; the first is {key!r}: {places[0]} and {places[1]}. Everything was "
        "encoded and kept, but a trainer can't tell such samples apart: encode all of them into another cache with "
        "`key` shard, which puts the tar's name before each key, or leave one of the two out."
    )


def _places(cache: Path, part: str, key: str) -> list[str]:
    rows = read_rows(cache, part)
    found: list[str] = rows.filter(pc.equal(rows["key"], key))["source"].to_pylist()
    return found
