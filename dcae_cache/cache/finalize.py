"""The index over the parts that are there, and what is derived with it. Knows nothing of sources or models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CacheError
from ..files import replace_atomically
from ..version import __version__
from .commits import split_by_commit
from .index import CacheFacts, build_index, save_index
from .keys import refuse_duplicate_keys
from .known_parts import save_known_parts
from .ledger_file import write_ledger
from .locks import locked
from .parts import PartInfo, read_rows
from .plan import PLAN_NAME, Plan, load_plan
from .recipe import RECIPE_SHAPE, fingerprint
from .shape import check_shape


def index_of(cache: Path, plan: Plan, recipe: Mapping[str, Any], infos: Sequence[PartInfo]) -> dict[str, Any]:
    """The index over these committed parts, not yet written."""
    facts = CacheFacts(
        creator=f"dcae-cache {__version__}",
        origin=plan.origin,
        recipe=recipe,
        fingerprint=fingerprint(recipe),
        num_planned=plan.num_parts,
    )
    return build_index(cache, facts, infos)


def write_index(cache: Path, index: Mapping[str, Any], infos: Sequence[PartInfo]) -> None:
    """Write skipped.jsonl, ledger.json and, last, the index; and keep what was read for it."""
    with replace_atomically(cache / "skipped.jsonl") as file:
        for row in skipped_rows(cache, infos):
            line = {"key": row["image"] or row["key"], **{name: row[name] for name in ("source", "reason", "detail")}}
            line |= {name: row[name] for name in ("resolution", "crop") if row[name] is not None}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    write_ledger(cache, infos)
    save_index(cache, index)
    save_known_parts(cache, infos, {part["name"]: part["table_sha256"] for part in index["parts"]})


def skipped_rows(cache: Path, infos: Iterable[PartInfo]) -> Iterator[dict[str, Any]]:
    """The rows of these parts' skipped samples, in order."""
    for info in infos:
        if info.num_skipped:
            yield from (row for row in read_rows(cache, info.name).to_pylist() if row["status"] != "ok")


def finalize_cache(cache: Path) -> dict[str, Any]:
    """Write the index over whatever parts are committed, without source or model; returns it.

    Raises CacheLockedError while runs or jobs write to the cache, CacheError where there is no plan.
    """
    plan = load_plan(cache)
    if plan is None:
        raise CacheError(
            f"{cache} is no cache: it has no {PLAN_NAME}. Make one with: dcae-cache encode SOURCE --out {cache}"
        )
    try:
        check_shape(plan.recipe, RECIPE_SHAPE, "its recipe")
    except ValueError as error:
        raise CacheError(f"{cache / PLAN_NAME} is no plan of this format: {error}. Restore it from a copy.") from error
    with locked(cache):
        infos = split_by_commit(plan, cache, fingerprint(plan.recipe))[0]
        index = index_of(cache, plan, plan.recipe, infos)
        write_index(cache, index, infos)
    refuse_duplicate_keys(cache, [info.name for info in infos])
    return index
