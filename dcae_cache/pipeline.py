"""The story of a run: list the source, plan its parts, encode those that aren't committed yet, write the index.

Everything that takes long overlaps: decoding on threads (loading.py), encoding on the device (encoder.py), writing on
a thread of its own (collector.py). Memory holds the images in flight and a few parts' latents, however large the
source is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from .collector import Collector
from .config import EncodeConfig, RunOptions
from .encoder import EncodedBatch, LatentEncoder, auto_batch_size
from .files import locked, make_folder, remove_temporary_files
from .finish import Summary, check_skip_rate, check_sources, summarise, write_index
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
from .plan import list_entries
from .records import Bucket, Part, StoredAt
from .reuse import StoredLatents, encode_fresh
from .run import Progress, Run, delete_cache, start_run
from .shards import PARTS_FOLDER, PartContent, PartInfo, commit_part, shard_header
from .sources import SourceOptions
from .work import (
    find_broken_parts,
    plan_parts,
    refresh_tables,
    refuse_too_small_a_disk,
    remove_unplanned,
    split_by_commit,
    stored_latents,
)

__all__ = ["Summary", "encode_dataset"]


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
        plan, changes = plan_parts(run, listing)
        if run.options.repair:
            run.broken = find_broken_parts(run, plan)
        done, todo = split_by_commit(plan, run)
        run.resume(plan, done)
        refuse_too_small_a_disk(run, todo)
        if run.options.refresh_metadata:
            refresh_tables(run, plan, done)
        try:
            new = _encode_parts(run, todo, stored_latents(run, changes)) if todo else []
        except KeyboardInterrupt:
            run.retry_skipped = False  # what was skipped is finished all the same
            write_index(run, plan, split_by_commit(plan, run)[0])
            raise
        index = write_index(run, plan, sorted([*done, *new], key=lambda info: info.name))
        if run.options.prune:
            remove_unplanned(run, plan)
        if new and run.source.entries_per_part is not None:
            refuse_duplicate_keys(run.cache, [part["name"] for part in index["parts"]])
    summary = summarise(run, index, changes, len(done), time.perf_counter() - started)
    check_sources(run, summary)
    check_skip_rate(summary, run.options.max_skip_rate)
    return summary


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
