"""What is there already and what is to be made: the plan, the committed parts, broken ones, latents to copy.

Knows nothing of devices or images.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pyarrow as pa

from .errors import CacheError
from .files import sync_folder
from .finish import write_index
from .index import load_index
from .integrity import check_integrity
from .plan import Changes, Plan, entries_digest, grow_plan, load_plan, make_plan
from .records import Part
from .refresh import refresh_part
from .reuse import StoredLatents
from .run import Run
from .shards import PARTS_FOLDER, TORCH_DTYPES, PartInfo, read_part_info, shard_path


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


def split_by_commit(plan: Plan, run: Run) -> tuple[list[PartInfo], list[Part]]:
    """The parts that are committed for this recipe and these entries, and those still to be made."""
    done: list[PartInfo] = []
    todo: list[Part] = []
    for part in plan.parts():
        info = _committed(part, run)
        if info is None or (info.num_skipped and run.retry_skipped):
            todo.append(part)
        else:
            done.append(info)
    return done, todo


def _committed(part: Part, run: Run) -> PartInfo | None:
    if part.name in run.broken:
        return None
    try:
        info = read_part_info(run.cache, part.name)
    except CacheError:
        return None  # a damaged table commits nothing: the part is made again
    if info is None or (info.fingerprint, info.entries_sha256) != (run.fingerprint, entries_digest(part)):
        return None
    shard = shard_path(run.cache, part.name)
    return info if shard.exists() and shard.stat().st_size == info.shard_num_bytes else None


def find_broken_parts(run: Run, plan: Plan) -> frozenset[str]:
    """The committed parts whose files aren't, byte for byte, what was written."""
    run.notify("Checking every part's hashes.")
    try:
        load_index(run.cache)
    except CacheError:  # it is derived from the parts, and is needed to check them
        write_index(run, plan, split_by_commit(plan, run)[0])
    findings = check_integrity(run.cache)
    broken = frozenset(finding.where for finding in findings) & {part.name for part in plan.parts()}
    if broken:
        run.notify(f"{len(broken)} parts are broken and are made anew, the first: {min(broken)}.")
    return broken


def refresh_tables(run: Run, plan: Plan, done: list[PartInfo]) -> None:
    infos = {info.name: info for info in done}
    parts = [part for part in plan.parts() if part.name in infos]
    changed = sum(refresh_part(run.cache, run.source, part, infos[part.name]) for part in parts)
    run.notify(f"Read the captions, labels and attributes of {len(parts)} parts again: {changed} rows changed.")


def refuse_too_small_a_disk(run: Run, parts: list[Part]) -> None:
    """Raise CacheError where the latents to be made can't fit. Sizes are known for rules that keep the area."""
    recipe = run.recipe
    if run.source.entries_per_part is not None or recipe["bucket"] == "native":
        return
    cells = (recipe["resolution"] / recipe["spatial_compression_ratio"]) ** 2
    values = cells * recipe["latent_channels"] * (2 if recipe["flip"] else 1)
    expected = int(sum(len(part.entries) for part in parts) * values * TORCH_DTYPES[recipe["dtype"]].itemsize)
    free = shutil.disk_usage(run.cache).free
    if expected > free:
        raise CacheError(
            f"{run.cache} would grow by about {expected / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB left. "
            "Nothing was encoded. Free some space, or choose another --out."
        )


def stored_latents(run: Run, changes: Changes) -> StoredLatents:
    """What this run can copy instead of encoding it again."""
    stored = StoredLatents(
        run.cache, run.fingerprint, run.recipe["spatial_compression_ratio"], changes.gone, run.broken
    )
    stored.look_up(sorted(path.stem for path in (run.cache / PARTS_FOLDER).glob("part-*.parquet")))
    return stored


def remove_unplanned(run: Run, plan: Plan) -> None:
    """Remove the parts that pruning has left without entries."""
    planned = {part.name for part in plan.parts()}
    for path in sorted((run.cache / PARTS_FOLDER).glob("part-*")):  # the table, which commits a part, goes first
        if path.stem not in planned:
            path.unlink()
    sync_folder(run.cache / PARTS_FOLDER)
