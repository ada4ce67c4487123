"""Captions, labels and other facts joined from a table by key: tables are written anew, latents are not touched.

Knows nothing of sources, models or images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..cache.finalize import finalize_cache
from ..cache.locks import locked
from ..cache.parts import read_part_info, read_rows, write_table
from ..errors import UsageError, one_line
from ..records import CAPTIONS, Row
from .copying import open_cache

_FIELDS = tuple(item.name for item in fields(Row))
_OWN = ("caption", "label")  # columns of the table; everything else is kept among the attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateSummary:
    """What came of it: rows with a new value, rows that had it already, keys of the table that the cache lacks (and
    the first of them), and samples that the table says nothing of."""

    changed: int
    unchanged: int
    unmatched: int
    first_unmatched: str | None
    untold: int


def annotate_cache(
    cache: str | Path,
    table: str | Path,
    column: str,
    *,
    key: str = "key",
    name: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AnnotateSummary:
    """Set ``name`` (the column's own name unless given) of every sample that the table has a value for; a missing or
    empty one says nothing. Where an image has several samples, its key names all of them that the table has no value
    of their own for.

    ``table``: a .parquet, .csv, .tsv or .jsonl file with a column of keys. "caption" and "label" are columns of the
    cache's tables; any other name becomes an attribute. Of a list of captions the first becomes the caption, and all
    are kept in the attribute "captions". ``progress`` hears (parts done, of how many). Stopped on the
    way, the same call goes on. Raises UsageError for a table that can't be read, lacks a column or has a key twice,
    CacheError for a cache that isn't whole.
    """
    opened = open_cache(cache)
    target = name or column
    if target not in _OWN and target in _FIELDS:
        raise UsageError(f"{target!r} is a column that encode writes; keep the values under another name (`name`).")
    values = _values(Path(table), key, column, target)
    seen: set[str] = set()
    changed = unchanged = untold = 0
    with locked(opened.folder):
        parts = opened.index["parts"]
        for done, part in enumerate(parts):
            progress(done, len(parts))
            rows = _rows(opened.folder, part["name"])
            found = [key if (key := row.key) in values else row.image_key for row in rows]
            renewed = [
                _with(row, target, values[key]) if key in values else row for row, key in zip(rows, found, strict=True)
            ]
            told = [key for key in found if key in values]
            seen.update(told)
            untold += len(rows) - len(told)
            differing = sum(new != old for new, old in zip(renewed, rows, strict=True))
            changed += differing
            unchanged += len(told) - differing
            if differing:
                info = read_part_info(opened.folder, part["name"])
                assert info is not None, "its rows were just read"
                write_table(opened.folder, info, renewed)
    finalize_cache(opened.folder)
    progress(len(parts), len(parts))
    unmatched = [other for other in values if other not in seen]
    return AnnotateSummary(
        changed=changed,
        unchanged=unchanged,
        unmatched=len(unmatched),
        first_unmatched=unmatched[0] if unmatched else None,
        untold=untold,
    )


def _rows(folder: Path, part: str) -> list[Row]:
    return [Row(**{name: values[name] for name in _FIELDS}) for values in read_rows(folder, part).to_pylist()]


def _with(row: Row, name: str, value: Any) -> Row:
    if name == "label":
        return replace(row, label=str(value))
    if name == "caption":
        row = replace(row, caption=str(value[0] if isinstance(value, list) else value))
        return _with_attribute(row, CAPTIONS, value) if isinstance(value, list) else _without_others(row)
    return _with_attribute(row, name, value)


def _with_attribute(row: Row, name: str, value: Any) -> Row:
    attributes = json.loads(row.attributes) if row.attributes else {}
    if name in attributes and attributes[name] == value:
        return row
    attributes[name] = value
    return replace(row, attributes=json.dumps(attributes, ensure_ascii=False))


def _without_others(row: Row) -> Row:
    """Without the list of several captions, of which the row's caption is no longer the first."""
    attributes = json.loads(row.attributes) if row.attributes else {}
    if CAPTIONS not in attributes or attributes[CAPTIONS][:1] == [row.caption]:
        return row
    del attributes[CAPTIONS]
    return replace(row, attributes=json.dumps(attributes, ensure_ascii=False) if attributes else None)


def _values(path: Path, key: str, column: str, target: str) -> Mapping[str, Any]:
    """Key -> value of a table, as JSON has it. Raises UsageError."""
    table = _read(path, [key, column], [key, column] if target in _OWN else [key])
    found: dict[str, Any] = {}
    for name, value in zip(table[key], table[column], strict=True):
        if name is None:
            raise UsageError(f"{path} has a row without a key in its column {key!r}.")
        if str(name) in found:
            raise UsageError(f"{path} has the key {str(name)!r} more than once; each sample takes one value.")
        if target in _OWN and not _is_text(value, several=target == "caption"):
            expected = "a text or a list of texts" if target == "caption" else "a text"
            raise UsageError(f"{path} has {value!r} in {column!r} at the key {str(name)!r}; expected {expected}.")
        found[str(name)] = None if value in ("", []) or value != value else json.loads(json.dumps(value, default=str))
    return {name: value for name, value in found.items() if value is not None}


def _is_text(value: Any, *, several: bool) -> bool:
    if isinstance(value, list):
        return several and all(isinstance(item, str) and item for item in value)
    return not isinstance(value, dict)


def _read(path: Path, wanted: Sequence[str], texts: Sequence[str]) -> Mapping[str, Sequence[Any]]:
    """These columns of a table. In CSV those called ``texts`` stay as they are written: 007 is no 7."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            _check_columns(path, wanted, pq.read_schema(path).names)
            return pq.read_table(path, columns=list(wanted)).to_pydict()  # type: ignore[no-any-return]  # no types
        if suffix in (".csv", ".tsv"):
            options = pyarrow.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)
            types = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()), null_values=[""])
            table = pyarrow.csv.read_csv(path, parse_options=options, convert_options=types)
            _check_columns(path, wanted, table.column_names)
            return table.select(list(wanted)).to_pydict()  # type: ignore[no-any-return]  # pyarrow has no types
        if suffix in (".jsonl", ".ndjson"):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object")
            _check_columns(path, wanted, list(dict.fromkeys(name for row in rows for name in row)))
            return {name: [row.get(name) for row in rows] for name in wanted}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as a table: {one_line(error)}.") from error
    raise UsageError(f"{path} is a file of no known kind; expected a .parquet, .csv, .tsv or .jsonl table.")


def _check_columns(path: Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise UsageError(f"{path} has no column {lacking[0]!r}; there are {', '.join(there)}.")
