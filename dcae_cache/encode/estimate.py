"""How long a run would take, from a short measurement: a few images decoded, one small batch encoded on the device.

Reading the source is not measured, nor is what the cache holds already: a run over a network may take longer, one that
goes on is done sooner. Knows nothing of sources.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..compute.cores import default_workers
from ..compute.devices import describe_device
from ..config import EncodeConfig, RunOptions
from ..errors import DCAECacheError, SampleSkipped, one_line
from ..images.pixels import load_fitted
from ..images.views import Fitting
from ..models.latent_encoder import LatentEncoder
from ..records import Bucket
from ..text import counted
from .distributed import count_processes
from .run_model import RunModel

MOST_DECODED = 8  # images
_BATCH = 8  # images; on a CPU one for each of its streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """``seconds`` for all images of the source, on this machine; None where ``how`` says why nothing was measured.

    ``decode_seconds``: of one image on one core, shared among its sizes and crops where it has several.
    ``encode_seconds``: of one million pixels on one device, mirrored
    images included.
    """

    seconds: float | None
    decode_seconds: float | None = None
    encode_seconds: float | None = None
    how: str


def estimate(
    model: RunModel,
    config: EncodeConfig,
    options: RunOptions,
    scaling_factor: float,
    buckets: Mapping[Bucket, int],
    encoded: Sequence[bytes],
) -> Estimate:
    """``buckets``: how many images there are of each size. ``encoded``: a few images as they are stored.

    Never raises for what keeps it from measuring: a dry run is worth having without.
    """
    fitting = config.fitting(model.checkpoint.spec.spatial_compression_ratio)
    decoded, decode_seconds = _decode_seconds(encoded, fitting, config.max_pixels)
    if not buckets or not decoded:
        return Estimate(seconds=None, how="not estimated: no image could be decoded")
    bucket = max(buckets, key=lambda each: buckets[each])
    try:
        batch, encode_seconds = _encode_seconds(model, config, scaling_factor, bucket)
        processes = count_processes(options.device, options.num_processes, None)
    except (DCAECacheError, RuntimeError, OSError, MemoryError) as error:
        return Estimate(seconds=None, decode_seconds=decode_seconds, how=f"not estimated: {one_line(error)}")
    megapixels = sum(count * each.height * each.width for each, count in buckets.items()) / 1e6
    cores = min(options.workers or default_workers(), default_workers())
    decoding, encoding = decode_seconds * sum(buckets.values()) / cores, encode_seconds * megapixels
    together = model.device.type == "cpu"  # they share the cores, however many processes there are
    measured = f"measured: {counted(decoded, 'image')} decoded, {batch} of {bucket} encoded"
    return Estimate(
        seconds=decoding + encoding if together else max(decoding, encoding / processes),
        decode_seconds=decode_seconds,
        encode_seconds=encode_seconds,
        how=f"{measured} on {describe_device(model.device)}; without reading the source",
    )


def _decode_seconds(encoded: Sequence[bytes], fitting: Fitting, max_pixels: int) -> tuple[int, float]:
    """How many can be decoded, and the mean seconds of one view of these on this thread."""
    taken, num_views = [], 0
    for data in encoded:
        started = time.perf_counter()
        try:
            num_views += len(load_fitted(data, "", fitting, max_pixels))
        except (SampleSkipped, OSError):
            continue
        taken.append(time.perf_counter() - started)
    return len(taken), sum(taken) / max(1, num_views)


def _encode_seconds(model: RunModel, config: EncodeConfig, scaling_factor: float, bucket: Bucket) -> tuple[int, float]:
    """How many images were encoded, and the seconds for one million of their pixels. What they show doesn't matter."""
    streams = min(torch.get_num_threads(), default_workers())
    with LatentEncoder(model.load(), config.dtype, scaling_factor, config.flip, streams) as encoder:
        each = 1 if model.device.type == "cpu" else min(_BATCH, encoder.batch_size(bucket))
        noise = np.random.default_rng(0).integers(0, 256, (bucket.height, bucket.width, 3), dtype=np.uint8)
        encoder.encode([noise] * each)  # the first batch of a size plans and allocates
        started = time.perf_counter()
        for pending in [encoder.launch([noise] * each) for _ in range(encoder.streams)]:
            pending.result()
        seconds = time.perf_counter() - started
    count = each * encoder.streams
    return count, seconds / (count * bucket.height * bucket.width / 1e6)
