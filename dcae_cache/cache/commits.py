"""Which parts of a plan are committed, and which are still to be made. Knows nothing of sources or models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from ..asking import answers
from ..errors import CacheError
from ..records import part_name
from .away import forget_away, shard_num_bytes
from .index import INDEX_NAME
from .known_parts import KnownParts
from .ledger_file import LEDGER_NAME, STAMPS_NAME
from .parts import PARTS_FOLDER, PartInfo, read_part_info
from .plan import PLAN_NAME, Plan
from .rows_file import DERIVED_FOLDER


def split_by_commit(
    plan: Plan,
    cache: Path,
    fingerprint: str,
    numbers: Iterable[int] | None = None,
    *,
    retry_skipped: bool = False,
) -> tuple[list[PartInfo], list[int]]:
    """Of the parts with these numbers (None: of all), those that are committed for this recipe and these entries, and
    the numbers of those still to be made.

    With ``retry_skipped`` a part with skipped samples counts as still to be made.
    """
    done: list[PartInfo] = []
    todo: list[int] = []
    parts = plan.part_numbers if numbers is None else list(numbers)
    infos = answers(partial(_committed, cache, fingerprint, KnownParts(cache)), parts)
    for number, info in zip(parts, infos, strict=True):
        # What the digest takes is spent on parts that are there.
        if info is None or info.entries_sha256 != plan.digest(number) or (info.num_skipped and retry_skipped):
            todo.append(number)
        else:
            done.append(info)
    return done, todo


def _committed(cache: Path, fingerprint: str, known: KnownParts, number: int) -> PartInfo | None:
    """The part's info if it is committed for this recipe, whatever its entries."""
    name = part_name(number)
    try:
        info = known.find(name) or read_part_info(cache, name)
    except CacheError:
        return None  # a damaged table commits nothing: the part is made again
    if info is None or info.fingerprint != fingerprint:
        return None
    return info if shard_num_bytes(cache, name) == info.shard_num_bytes else None


def delete_cache(cache: Path) -> None:
    """Delete what a cache consists of, and nothing else: first what says that its parts are whole."""
    for name in (INDEX_NAME, "skipped.jsonl", LEDGER_NAME, STAMPS_NAME, PLAN_NAME):
        (cache / name).unlink(missing_ok=True)
    shutil.rmtree(cache / DERIVED_FOLDER, ignore_errors=True)
    for suffix in ("parquet", "safetensors"):
        for path in sorted((cache / PARTS_FOLDER).glob(f"part-*.{suffix}")):
            path.unlink()
    forget_away(cache)


def count_tables(cache: Path) -> int:
    """How many parts have a table, whatever they were made for."""
    return sum(
        1 for name in os.listdir(cache / PARTS_FOLDER) if name.startswith("part-") and name.endswith(".parquet")
    )
