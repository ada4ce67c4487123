"""One process's share of a run: parts in, committed parts out.

Everything that takes long overlaps: decoding on threads (loading.py), encoding on the device (encoder.py), writing on
a thread of its own (collector.py). Memory holds the images in flight and a few parts' latents, however large the
source is. Knows nothing of plans, indexes or other processes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing

from ..cache.parts import PARTS_FOLDER, PartContent, PartInfo, commit_part, shard_header
from ..compute.cores import default_workers
from ..compute.devices import auto_batch_size
from ..loading.batches import Batch, PartEnd, PartFailed, PartLoaded, load_batches
from ..loading.prefetch import Prefetch
from ..loading.rows import LoadSettings
from ..models.latent_encoder import EncodedBatch, LatentEncoder
from ..records import Bucket, Part, StoredAt
from .part_writer import Collector
from .reuse import StoredLatents, encode_fresh
from .run import Run


def encode_parts(run: Run, parts: Iterable[Part], stored: StoredLatents) -> list[PartInfo]:
    """Encode and commit the parts; while the device works on a batch (a CPU on several) the next is prepared.

    ``parts`` is asked for the next one, on another thread, when the samples of the one before are on their way.
    """
    run.device = str(run.model.device)
    settings = LoadSettings(
        run.rule,
        run.config.max_pixels,
        _batch_sizes(run.options.batch_size, run.model.device.type),
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
            run.tally.failures.append(str(item.error))
        else:
            collector.add(item[0], stored.complete(*item))
            run.tally.copied += sum(isinstance(image, StoredAt) for image in item[0].images)

    with (
        LatentEncoder(
            run.model.load(), run.config.dtype, run.recipe["scaling_factor"], run.config.flip, run.streams
        ) as encoder,
        Collector(commit, run.count, run.cache / PARTS_FOLDER) as collector,
        closing(Prefetch(load_batches(run.source, parts, settings), depth=2)) as loaded,
    ):
        encoder.notify = run.notify
        for item in _timed(loaded, run):
            under_way.append((item, encode_fresh(item, encoder.launch)) if isinstance(item, Batch) else item)
            while sum(isinstance(waiting, tuple) for waiting in under_way) > encoder.streams:
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
        run.tally.waited_seconds += time.perf_counter() - asked
        if item is None:
            return
        yield item


def _batch_sizes(batch_size: int | None, device_type: str) -> Callable[[Bucket], int]:
    return lambda bucket: batch_size or auto_batch_size(bucket, device_type)
