"""What a run would do, from the images' headers alone: nothing is decoded, encoded or written."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..cache.plan import list_entries, make_plan
from ..cache.recipe import recipe_of
from ..compute.cores import default_workers
from ..compute.devices import TORCH_DTYPES, pick_device
from ..config import EncodeConfig, RunOptions
from ..errors import SampleSkipped
from ..images.buckets import bucket_for
from ..images.pixels import image_size
from ..records import Bucket, Origin, SampleRef
from ..sources import SourceOptions, open_source
from .run_model import find_model, identify


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The resolved recipe and what it would make of the source."""

    recipe: dict[str, Any]
    num_samples: int
    num_parts: int
    buckets: dict[str, int]  # "{height}x{width}" -> images
    batches: dict[str, int]  # "{height}x{width}" -> batches
    skipped: dict[str, int]  # reason -> images whose header already says so
    num_bytes: int  # of latents


def preview_dataset(
    source: str,
    config: EncodeConfig,
    options: RunOptions,
    source_options: SourceOptions | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Preview:
    """Read every header of ``source`` and count. ``report`` hears (done, total). Raises as ``encode_dataset`` does."""
    images = open_source(source, source_options)
    model = find_model(config, options, pick_device(options.device))
    rule = config.bucket_rule(model.checkpoint.spec.spatial_compression_ratio)
    recipe = recipe_of(config, identify(model, config, {}))
    listing = list_entries(images.entries(options.limit))
    plan = make_plan(listing, recipe, Origin(images.uri), images.entries_per_part or options.part_size)
    automatic = model.automatic_batches()
    buckets: Counter[Bucket] = Counter()
    batches: Counter[Bucket] = Counter()
    skipped: Counter[str] = Counter()
    num_parts = done = 0

    def bucket_of(ref: SampleRef) -> Bucket | str:
        try:
            with ref.open() as file:
                return bucket_for(*image_size(file, config.max_pixels), rule)[0]
        except SampleSkipped as skip:
            return skip.reason
        except OSError:
            return "unreadable"

    for part in plan.parts():
        num_parts += 1
        here: Counter[Bucket] = Counter()
        for found in _on_threads(bucket_of, images.read(part), options.workers or default_workers()):
            if isinstance(found, Bucket):
                here[found] += 1
            else:
                skipped[found] += 1
            done += 1
            report(done, max(done, plan.num_entries))
        buckets += here
        for bucket, count in here.items():
            batches[bucket] += -(-count // (options.batch_size or automatic(bucket)))
    cells = sum(count * bucket.height * bucket.width for bucket, count in buckets.items()) // rule.factor**2
    itemsize = TORCH_DTYPES[config.dtype].itemsize
    return Preview(
        recipe=recipe,
        num_samples=done,
        num_parts=num_parts,
        buckets={str(bucket): count for bucket, count in sorted(buckets.items())},
        batches={str(bucket): count for bucket, count in sorted(batches.items())},
        skipped=dict(sorted(skipped.items())),
        num_bytes=cells * recipe["latent_channels"] * itemsize * (2 if config.flip else 1),
    )


def _on_threads(
    work: Callable[[SampleRef], Bucket | str], refs: Iterable[SampleRef], workers: int
) -> Iterator[Bucket | str]:
    """``map`` over threads that reads ahead a bounded way, so that a large part doesn't pile up in memory."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Bucket | str]] = deque()
        for ref in refs:
            waiting.append(pool.submit(work, ref))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
