"""Are the keys of a cache unique? For sources whose keys are known only once they are read (input tars).

Knows nothing of plans or sources.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import SourceError
from .parts import read_rows


def refuse_duplicate_keys(cache: Path, parts: Iterable[str]) -> None:
    """Raise SourceError, naming both places, where two committed samples have the same key."""
    names, columns = list(parts), []
    for name in names:
        columns.append(read_rows(cache, name)["key"])
    keys = pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=pa.string())
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = pc.value_counts(keys)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    key = repeated[0].as_py()
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
