"""What a run would do, from the images' headers; a few are decoded and encoded to tell the time, none is written."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ..cache.listing import list_entries
from ..cache.plan import make_plan
from ..cache.recipe import recipe_of
from ..compute.cores import default_workers
from ..compute.devices import TORCH_DTYPES, pick_device
from ..config import EncodeConfig, RunOptions
from ..errors import SampleSkipped
from ..images.crops import FitTally, crop_share, enlargement
from ..images.pixels import image_size
from ..ledger import Counts, Ledger
from ..records import CAPTION_BYTES, Bucket, Origin, SampleRef
from ..sources import SourceOptions, open_source, refuse_options_without_effect
from .estimate import MOST_DECODED, estimate
from .run_model import find_model, identify

_Fitted = tuple[Bucket, float, float]  # and the shares that it is cropped by and enlarged to
_Looked = tuple[list[_Fitted] | SampleSkipped, list[str]]  # its views, and what is said of the sample


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
    unsupported: dict[str, int]  # why, in a sentence -> images skipped as such
    cropped_mean: float  # share of an image's area that its crop leaves out
    cropped_p90: float  # nine images of ten lose no more
    enlarged: int  # images
    enlarged_most: float  # times, the one that grows most; below 1 if none grows
    left_out: int  # sizes that images are too small for, though not for others
    ledger: dict[str, Any]  # what was met in the source
    estimate: dict[str, Any]  # Estimate's fields: how long it would take, and how that was found


def preview_dataset(
    source: str,
    config: EncodeConfig,
    options: RunOptions,
    source_options: SourceOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Preview:
    """Read every header of ``source`` and count, and measure how long a few images take. ``progress`` hears (done,
    total). Raises like ``encode_dataset``."""
    images = open_source(source, source_options)
    refuse_options_without_effect(images, source_options or SourceOptions())
    model = find_model(config, options, pick_device(options.device))
    fitting = config.fitting(model.checkpoint.spec.spatial_compression_ratio)
    recipe = recipe_of(config, identify(model, config, {}))
    few: list[bytes] = []  # images as they are stored
    listing = list_entries(images.entries(options.limit))
    plan = make_plan(listing, recipe, Origin(images.uri), images.entries_per_part or options.part_size)
    automatic = model.automatic_batches()
    buckets: Counter[Bucket] = Counter()
    batches: Counter[Bucket] = Counter()
    skipped: Counter[str] = Counter()
    unsupported: Counter[str] = Counter()
    fit = FitTally()
    num_parts = done = left_out = 0

    said: Counter[str] = Counter()

    def fitted(ref: SampleRef) -> list[_Fitted] | SampleSkipped:
        try:
            with ref.open() as file:
                height, width = image_size(file, config.max_pixels)
            views = fitting.views_of(ref.key, height, width)
        except SampleSkipped as skip:
            return skip
        except OSError as error:
            return SampleSkipped("unreadable", str(error))
        if len(few) < MOST_DECODED:
            with suppress(SampleSkipped, OSError):  # an unreadable caption, say: headers alone are counted here
                few.append(ref.load().data)
        return [
            (view.bucket, crop_share(height, width, view.crop, view.bucket), enlargement(height, width, view.crop))
            for view in views
        ]

    for part in plan.parts():
        num_parts += 1
        here: Counter[Bucket] = Counter()
        looked = _on_threads(
            lambda ref: (fitted(ref), _said_of(ref)), images.read(part), options.workers or default_workers()
        )
        for found, words in looked:
            said.update(words)
            if isinstance(found, SampleSkipped):
                skipped[found.reason] += 1
                if found.reason == "unsupported":
                    unsupported[found.detail] += 1
            else:
                left_out += fitting.num_views - len(found)
                for bucket, cropped, enlarged in found:
                    here[bucket] += 1
                    fit.add(cropped, enlarged)
            done += 1
            progress(done, max(done, plan.num_entries))
        buckets += here
        for bucket, count in here.items():
            batches[bucket] += -(-count // (options.batch_size or automatic(bucket)))
    cells = sum(count * bucket.height * bucket.width for bucket, count in buckets.items())
    cells //= recipe["spatial_compression_ratio"] ** 2
    itemsize = TORCH_DTYPES[config.dtype].itemsize
    return Preview(
        recipe=recipe,
        num_samples=done,
        num_parts=num_parts,
        buckets={str(bucket): count for bucket, count in sorted(buckets.items())},
        batches={str(bucket): count for bucket, count in sorted(batches.items())},
        skipped=dict(sorted(skipped.items())),
        num_bytes=cells * recipe["latent_channels"] * itemsize * (2 if config.flip else 1),
        unsupported=dict(unsupported.most_common()),
        cropped_mean=fit.mean_cropped,
        cropped_p90=fit.p90_cropped,
        enlarged=fit.num_enlarged,
        enlarged_most=fit.largest_enlargement,
        left_out=left_out,
        ledger=_ledger(images.counts().total(), done, said).to_json(),
        estimate=asdict(estimate(model, config, options, recipe["scaling_factor"], buckets, few[:MOST_DECODED])),
    )


def _said_of(ref: SampleRef) -> list[str]:
    """What there is of caption and label of a sample, to be counted."""
    try:
        notes = ref.notes()
    except (SampleSkipped, OSError):
        return []
    found = {
        "caption": notes.caption is not None,
        "label": notes.label is not None,
        "unread": notes.caption is None and CAPTION_BYTES in notes.attributes,
    }
    return [what for what, is_there in found.items() if is_there]


def _ledger(met: Counts, samples: int, said: Mapping[str, int]) -> Ledger:
    met.unread_captions = said["unread"]
    return Ledger(counts=met, samples=samples, with_caption=said["caption"], with_label=said["label"])


def _on_threads(work: Callable[[SampleRef], _Looked], refs: Iterable[SampleRef], workers: int) -> Iterator[_Looked]:
    """``map`` over threads that reads ahead a bounded way, so that a large part doesn't pile up in memory."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Looked]] = deque()
        for ref in refs:
            waiting.append(pool.submit(work, ref))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
