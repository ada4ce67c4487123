"""What is there already and what is to be made: the plan, the committed parts, broken ones, latents to copy.

Knows nothing of devices or images.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..cache.index import load_index
from ..cache.integrity import check_integrity
from ..cache.keys import refuse_duplicate_keys
from ..cache.parts import PARTS_FOLDER, TORCH_DTYPES, PartInfo, read_part_info, shard_path, table_path
from ..cache.plan import PLAN_NAME, Changes, Plan, entries_digest, grow_plan, load_plan, make_plan
from ..config import fingerprint as fingerprint_of
from ..errors import CacheError
from ..files import locked, sync_folder
from ..records import Part, part_name, part_number
from .maintenance import refresh_part
from .reuse import StoredLatents
from .run import Run
from .summary import describe, write_index

_READERS, _CHUNK = 8, 4096


def plan_parts(run: Run, listing: pa.Table) -> tuple[Plan, Changes]:
    """The plan of the first run, grown by what the source has gained since."""
    known = load_plan(run.cache)
    part_size = run.source.entries_per_part or run.options.part_size
    if known is None:
        plan = make_plan(listing, run.recipe, run.origin, part_size)
        changes = Changes(plan.num_entries, 0, 0)
    else:
        plan, changes = grow_plan(known, listing, part_size, prune=run.options.prune)
        if run.options.limit is not None:  # cut off: what isn't listed needn't be gone
            changes = replace(changes, vanished=0, gone=frozenset())
        plan = replace(plan, origin=run.origin)  # it may have moved
    if known is None or (plan.table, plan.origin) != (known.table, known.origin):
        plan.save(run.cache)
    return plan, changes


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
    parts = map(plan.part, plan.part_numbers if numbers is None else numbers)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="commit") as pool:  # network file systems take their time
        while chunk := list(islice(parts, _CHUNK)):
            for part, info in zip(chunk, pool.map(partial(_committed, cache, fingerprint), chunk), strict=True):
                if info is None or (info.num_skipped and retry_skipped):
                    todo.append(part.number)
                else:
                    done.append(info)
    return done, todo


def _committed(cache: Path, fingerprint: str, part: Part) -> PartInfo | None:
    """The part's info if it is committed for this recipe and these entries."""
    try:
        info = read_part_info(cache, part.name)
    except CacheError:
        return None  # a damaged table commits nothing: the part is made again
    if info is None or (info.fingerprint, info.entries_sha256) != (fingerprint, entries_digest(part)):
        return None
    shard = shard_path(cache, part.name)
    return info if shard.exists() and shard.stat().st_size == info.shard_num_bytes else None


def discard_broken_parts(run: Run, plan: Plan) -> None:
    """Take back the commit of parts whose files aren't, byte for byte, what was written: they are made anew."""
    run.notify("Checking every part's hashes.")
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
        run.notify(f"{len(broken)} parts are broken and are made anew, the first: {broken[0]}.")


def refresh_tables(run: Run, plan: Plan, done: list[PartInfo]) -> None:
    changed = sum(refresh_part(run.cache, run.source, plan.part(part_number(info.name)), info) for info in done)
    run.notify(f"Read the captions, labels and attributes of {len(done)} parts again: {changed} rows changed.")


def refuse_too_small_a_disk(run: Run, plan: Plan, todo: list[int]) -> None:
    """Raise CacheError where the latents to be made can't fit. Sizes are known for rules that keep the area."""
    recipe = run.recipe
    if run.source.entries_per_part is not None or recipe["bucket"] == "native":
        return
    cells = (recipe["resolution"] / recipe["spatial_compression_ratio"]) ** 2
    values = cells * recipe["latent_channels"] * (2 if recipe["flip"] else 1)
    expected = int(plan.count_entries(todo) * values * TORCH_DTYPES[recipe["dtype"]].itemsize)
    free = shutil.disk_usage(run.cache).free
    if expected > free:
        raise CacheError(
            f"{run.cache} would grow by about {expected / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB left. "
            "Nothing was encoded. Free some space, or choose another --out."
        )


def stored_latents(run: Run, gone: frozenset[str]) -> StoredLatents:
    """What this run can copy instead of encoding it again. ``gone``: planned keys that the source has no more."""
    stored = StoredLatents(run.cache, run.fingerprint, run.recipe["spatial_compression_ratio"], gone)
    stored.look_up(sorted(path.stem for path in (run.cache / PARTS_FOLDER).glob("part-*.parquet")))
    return stored


def remove_unplanned(run: Run, plan: Plan) -> None:
    """Remove the parts that pruning has left without entries."""
    planned = {part_name(number) for number in plan.part_numbers}
    for path in sorted((run.cache / PARTS_FOLDER).glob("part-*")):  # the table, which commits a part, goes first
        if path.stem not in planned:
            path.unlink()
    sync_folder(run.cache / PARTS_FOLDER)


def finalize_cache(cache: Path) -> dict[str, Any]:
    """Write the index over whatever parts are committed, without source or model; returns it.

    Raises CacheLockedError while runs or jobs write to the cache, CacheError where there is no plan.
    """
    plan = load_plan(cache)
    if plan is None:
        raise CacheError(
            f"{cache} is no cache: it has no {PLAN_NAME}. Make one with: dcae-cache encode SOURCE --out {cache}"
        )
    with locked(cache):
        infos = split_by_commit(plan, cache, fingerprint_of(plan.recipe))[0]
        index = describe(cache, plan, plan.recipe, infos)
        write_index(cache, index, infos)
    refuse_duplicate_keys(cache, [info.name for info in infos])
    return index
