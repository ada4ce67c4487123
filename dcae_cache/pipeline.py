"""The story of a run: list the source, plan its parts, encode those that aren't committed yet, write the index.

Everything that takes long overlaps: decoding on threads (loading.py), encoding on the device (encoder.py), writing on
a thread of its own (collector.py). Memory holds the images in flight and a few parts' latents, however large the
source is.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from . import __version__
from .collector import Collector
from .config import EncodeConfig, RunOptions
from .encoder import EncodedBatch, LatentEncoder, auto_batch_size
from .errors import CacheError, DamagedSourceError, SourceError, TooManySkippedError
from .files import locked, make_folder, remove_temporary_files, replace_atomically, sync_folder
from .index import CacheFacts, build_index, load_index, save_index
from .integrity import check_integrity
from .keys import refuse_duplicate_keys
from .loading import (
    Batch,
    LoadSettings,
    PartEnd,
    PartFailed,
    PartLoaded,
    Prefetch,
    default_workers,
    load_batches,
)
from .plan import Changes, Plan, entries_digest, grow_plan, list_entries, load_plan, make_plan
from .records import Bucket, Part, StoredAt
from .refresh import refresh_part
from .reuse import StoredLatents, encode_fresh
from .run import Progress, Run, delete_cache, start_run
from .shards import (
    PARTS_FOLDER,
    TORCH_DTYPES,
    PartContent,
    PartInfo,
    commit_part,
    read_part_info,
    read_rows,
    shard_header,
    shard_path,
)
from .sources import SourceOptions
from .sources.base import DAMAGED


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did, and what the cache holds now."""

    out: str
    complete: bool
    encoded: int  # by this run
    copied: int  # by this run, from latents that were stored for the same image
    skipped: dict[str, int]  # reason -> samples, in the whole cache
    num_samples: int  # stored, in the whole cache
    num_bytes: int
    num_parts: int
    parts_reused: int
    vanished: int  # planned, but gone from the source
    pruned: int  # of these, dropped
    device: str | None  # None: nothing was left to encode
    seconds: float
    waited_seconds: float  # the encoder stood still for want of pixels

    @property
    def images_per_second(self) -> float:
        return self.encoded / self.seconds if self.seconds else 0.0


def encode_dataset(
    source: str | Path,
    out: str | Path,
    config: EncodeConfig | None = None,
    options: RunOptions | None = None,
    *,
    source_options: SourceOptions | None = None,
    report: Callable[[Progress], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Summary:
    """Encode every image of ``source`` into the cache ``out``; run it again to resume, or to add what is new.

    ``report`` is called on this thread after every batch, ``notify`` with what a person should hear. Raises a
    DCAECacheError of errors.py; whatever was committed before stays valid. On KeyboardInterrupt finished parts are
    kept and indexed, then it is raised again.
    """
    started = time.perf_counter()
    run = start_run(str(source), Path(out), config or EncodeConfig(), options or RunOptions(), source_options)
    run.report, run.notify = report or run.report, notify or run.notify
    listing = list_entries(run.source.entries(run.options.limit))
    make_folder(run.cache / PARTS_FOLDER)
    with locked(run.cache):
        if run.replaces:
            delete_cache(run.cache)
        remove_temporary_files(run.cache)
        remove_temporary_files(run.cache / PARTS_FOLDER)
        plan, changes = _plan_parts(run, listing)
        if run.options.repair:
            run.broken = _find_broken_parts(run, plan)
        done, todo = _split_by_commit(plan, run)
        run.resume(plan, done)
        _refuse_too_small_a_disk(run, todo)
        if run.options.refresh_metadata:
            _refresh_tables(run, plan, done)
        try:
            new = _encode_parts(run, todo, _stored_latents(run, changes)) if todo else []
        except KeyboardInterrupt:
            run.retry_skipped = False  # what was skipped is finished all the same
            _write_index(run, plan, _split_by_commit(plan, run)[0])
            raise
        index = _write_index(run, plan, sorted([*done, *new], key=lambda info: info.name))
        if run.options.prune:
            _remove_unplanned(run, plan)
        if new and run.source.entries_per_part is not None:
            refuse_duplicate_keys(run.cache, [part["name"] for part in index["parts"]])
    summary = _summarise(run, index, changes, len(done), time.perf_counter() - started)
    _check_sources(run, summary)
    _check_skip_rate(summary, run.options.max_skip_rate)
    return summary


def _plan_parts(run: Run, listing: pa.Table) -> tuple[Plan, Changes]:
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


def _refresh_tables(run: Run, plan: Plan, done: list[PartInfo]) -> None:
    infos = {info.name: info for info in done}
    parts = [part for part in plan.parts() if part.name in infos]
    changed = sum(refresh_part(run.cache, run.source, part, infos[part.name]) for part in parts)
    run.notify(f"Read the captions, labels and attributes of {len(parts)} parts again: {changed} rows changed.")


def _find_broken_parts(run: Run, plan: Plan) -> frozenset[str]:
    """The committed parts whose files aren't, byte for byte, what was written."""
    run.notify("Checking every part's hashes.")
    try:
        load_index(run.cache)
    except CacheError:  # it is derived from the parts, and is needed to check them
        _write_index(run, plan, _split_by_commit(plan, run)[0])
    findings = check_integrity(run.cache)
    broken = frozenset(finding.where for finding in findings) & {part.name for part in plan.parts()}
    if broken:
        run.notify(f"{len(broken)} parts are broken and are made anew, the first: {min(broken)}.")
    return broken


def _refuse_too_small_a_disk(run: Run, parts: list[Part]) -> None:
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


def _stored_latents(run: Run, changes: Changes) -> StoredLatents:
    """What this run can copy instead of encoding it again."""
    stored = StoredLatents(
        run.cache, run.fingerprint, run.recipe["spatial_compression_ratio"], changes.gone, run.broken
    )
    stored.look_up(sorted(path.stem for path in (run.cache / PARTS_FOLDER).glob("part-*.parquet")))
    return stored


def _remove_unplanned(run: Run, plan: Plan) -> None:
    """Remove the parts that pruning has left without entries."""
    planned = {part.name for part in plan.parts()}
    for path in sorted((run.cache / PARTS_FOLDER).glob("part-*")):  # the table, which commits a part, goes first
        if path.stem not in planned:
            path.unlink()
    sync_folder(run.cache / PARTS_FOLDER)


def _split_by_commit(plan: Plan, run: Run) -> tuple[list[PartInfo], list[Part]]:
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


def _encode_parts(run: Run, parts: Iterable[Part], stored: StoredLatents) -> list[PartInfo]:
    """Encode and commit the parts; one batch is always under way on the device while the next is prepared."""
    encoder = LatentEncoder(run.model.load(), run.config.dtype, run.recipe["scaling_factor"], run.config.flip)
    encoder.notify = run.notify
    run.device = str(encoder.device)
    settings = LoadSettings(
        run.rule,
        run.config.max_pixels,
        _batch_sizes(run.options.batch_size, encoder.device.type),
        run.options.workers or default_workers(),
        stored.known,
    )
    header, channels = shard_header(run.recipe, run.fingerprint), run.recipe["latent_channels"]
    under_way: deque[tuple[Batch, Callable[[], EncodedBatch] | None] | PartEnd] = deque()

    def commit(content: PartContent) -> PartInfo:
        return commit_part(run.cache, content, header, channels)

    def settle_one(collector: Collector) -> None:
        item = under_way.popleft()
        if isinstance(item, PartLoaded):
            collector.finish(item.part)
            run.count_part()
            stored.forget(item.part.part.name)
        elif isinstance(item, PartFailed):
            collector.drop(item.part)
            run.failures.append(item.error)
        else:
            collector.add(item[0], stored.complete(*item))
            run.copied += sum(isinstance(image, StoredAt) for image in item[0].images)

    with (
        Collector(commit, run.count, run.cache / PARTS_FOLDER) as collector,
        closing(Prefetch(load_batches(run.source, parts, settings), depth=2)) as loaded,
    ):
        for item in _timed(loaded, run):
            under_way.append((item, encode_fresh(item, encoder.launch)) if isinstance(item, Batch) else item)
            while sum(isinstance(waiting, tuple) for waiting in under_way) > 1:
                settle_one(collector)
        while under_way:
            settle_one(collector)
    return collector.infos


def _timed(loaded: Iterable[Batch | PartEnd], run: Run) -> Iterable[Batch | PartEnd]:
    """The same items, while the time spent waiting for each is added to the run's."""
    items = iter(loaded)
    while True:
        asked = time.perf_counter()
        item = next(items, None)
        run.waited_seconds += time.perf_counter() - asked
        if item is None:
            return
        yield item


def _batch_sizes(batch_size: int | None, device_type: str) -> Callable[[Bucket], int]:
    return lambda bucket: batch_size or auto_batch_size(bucket, device_type)


def _write_index(run: Run, plan: Plan, infos: list[PartInfo]) -> dict[str, Any]:
    """Write skipped.jsonl and, last, the index over the committed parts."""
    facts = CacheFacts(
        creator=f"dcae-cache {__version__}",
        origin=plan.origin,
        recipe=run.recipe,
        fingerprint=run.fingerprint,
        num_planned=plan.num_parts,
    )
    index = build_index(run.cache, facts, infos)
    with replace_atomically(run.cache / "skipped.jsonl") as file:
        for info in infos:
            if not info.num_skipped:
                continue
            for row in read_rows(run.cache, info.name).to_pylist():
                if row["status"] != "ok":
                    line = {name: row[name] for name in ("key", "source", "reason", "detail")}
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    save_index(run.cache, index)
    return index


def _summarise(run: Run, index: dict[str, Any], changes: Changes, reused: int, seconds: float) -> Summary:
    totals = index["totals"]
    return Summary(
        out=str(run.cache),
        complete=index["complete"],
        encoded=run.encoded - run.copied,
        copied=run.copied,
        skipped=index["skipped"],
        num_samples=totals["num_samples"],
        num_bytes=totals["num_bytes"],
        num_parts=totals["num_parts"],
        parts_reused=reused,
        vanished=changes.vanished,
        pruned=changes.vanished if run.options.prune else 0,
        device=run.device,
        seconds=seconds,
        waited_seconds=run.waited_seconds,
    )


def _check_sources(run: Run, summary: Summary) -> None:
    """Say at the end what the source could not give: parts to try again, and files that broke off."""
    if run.failures:
        raise SourceError(
            f"{len(run.failures)} of {summary.num_parts + len(run.failures)} parts could not be read. "
            f"{run.failures[0]} The other parts are in the cache: run the same command again to add what is missing."
        )
    num_damaged = summary.skipped.get(DAMAGED, 0)
    if num_damaged and not run.options.allow_damaged:
        lines = (run.cache / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
        first = next(row for row in map(json.loads, lines) if row["reason"] == DAMAGED)
        raise DamagedSourceError(
            f"{num_damaged} input files are damaged, the first: {first['detail']}. What comes before the damage is in "
            "the cache. Mend them and run the same command again, or accept the loss with --allow-damaged."
        )


def _check_skip_rate(summary: Summary, limit: float | None) -> None:
    skipped = sum(summary.skipped.values())
    total = skipped + summary.num_samples
    if limit is not None and total and skipped / total > limit:
        raise TooManySkippedError(
            f"{skipped} of {total} samples were skipped, {skipped / total:.2%}; --max-skip-rate allows {limit:.2%}. "
            f"The cache is usable; the reasons are in {Path(summary.out) / 'skipped.jsonl'}."
        )
