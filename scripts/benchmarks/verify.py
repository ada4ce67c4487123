"""``verify`` over samples of a cache, and what it can't do without, alone: reading the images, and the network there
and back. Each in a process of its own, in turn, with all cores. What is left is comparing and scoring.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dcae_cache import LatentDataset, encode_dataset, verify_cache
from dcae_cache.cache.index import load_index
from dcae_cache.compute.cores import default_workers
from dcae_cache.compute.lanes import Lanes
from dcae_cache.config import EncodeConfig, RunOptions
from dcae_cache.decode.cache_model import CacheModel
from dcae_cache.sources import SourceOptions
from dcae_cache.verify.checks import VerifyOptions
from dcae_cache.verify.source_images import COLUMNS, SampleBatch, SourceImages, pick_samples

from .encode import MODEL, make_photos
from .memory import peak_mib
from .report import show_table


def main(args: list[str]) -> None:
    """Run the variants in turn and print a table, or be the process of one variant."""
    parser = argparse.ArgumentParser(prog="scripts/bench verify", description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos; made ones unless given")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.variant:
        print(json.dumps(_timed(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos or make_photos(Path(scratch) / "made", options.samples)
        cache = Path(scratch) / "latents"
        encode_dataset(
            photos, cache, EncodeConfig(model=MODEL, resolution=256, dtype="fp32"), RunOptions(device="cpu")
        )
        results: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
        for _ in range(options.repeats):
            for variant in VARIANTS:
                results[variant].append(_in_process(variant, photos, cache, options.samples))
    _show(results, options.repeats)


def _in_process(variant: str, photos: Path, cache: Path, samples: int) -> dict[str, float]:
    command = [sys.executable, "-m", "scripts.benchmarks", "verify", "--variant", variant, "--cache", str(cache)]
    command += ["--photos", str(photos), "--samples", str(samples)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def _timed(options: argparse.Namespace) -> dict[str, float]:
    """A variant's seconds and CPU seconds, after a few samples in the same process."""
    work = VARIANTS[options.variant]
    work(options, 8)()
    timed = work(options, options.samples)
    started, before = time.perf_counter(), time.process_time()
    samples = timed()
    return {
        "samples": samples,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - before,
        "peak_mib": peak_mib(),
    }


def _whole(options: argparse.Namespace, samples: int) -> Callable[[], int]:
    asked = VerifyOptions(samples=samples, source=str(options.photos), device="cpu")
    return lambda: len(verify_cache(options.cache, asked).checked)


def _reading(options: argparse.Namespace, samples: int) -> Callable[[], int]:
    return lambda: sum(len(batch.keys) for batch in _batches(options, samples)[1])


def _network(options: argparse.Namespace, samples: int) -> Callable[[], int]:
    """The fresh latents, and the stored ones decoded, as verify does both, of images that are there."""
    dataset, batches = _batches(options, samples)
    model = CacheModel(load_index(options.cache), torch.device("cpu"))
    cores = default_workers()

    def run() -> int:
        with model.encoder(streams=cores) as encoder, Lanes(model.device, cores) as lanes:
            pieces = []
            for batch in batches:
                stored = dataset.stack(batch.numbers)
                pieces.append(encoder.launch([image.permute(1, 2, 0).numpy() for image in batch.images]))
                pieces.append(lanes.start(partial(model.decode, stored)))
                while len(pieces) > 2 * cores:
                    pieces.pop(0).result()
            for piece in pieces:
                piece.result()
        return sum(len(batch.keys) for batch in batches)

    return run


def _batches(options: argparse.Namespace, samples: int) -> tuple[LatentDataset, list[SampleBatch]]:
    dataset = LatentDataset(options.cache, columns=COLUMNS)
    images = SourceImages(dataset, str(options.photos), "cpu", SourceOptions(), ())
    return dataset, list(images.batches(pick_samples(dataset, samples, 0), print))


def _show(results: dict[str, list[dict[str, float]]], repeats: int) -> None:
    print(f"{MODEL} fp32, area buckets around 256x256, {default_workers()} cores; median of {repeats}")
    costs = {
        name: statistics.median(run["cpu_seconds"] / run["samples"] * 1e3 for run in runs)
        for name, runs in results.items()
    }
    rows = [
        (
            *(name, f"{runs[0]['samples']:.0f}", f"{costs[name]:.1f}"),
            f"{statistics.median(run['samples'] / run['seconds'] for run in runs):.1f}",
            f"{max(run['peak_mib'] for run in runs):.0f}",
        )
        for name, runs in results.items()
    ]
    show_table(("", "samples", "CPU ms a sample", "samples/s", "peak MiB"), rows)
    print(f"share of the network in verify's CPU time: {costs['network'] / costs['verify']:.2f}")


VARIANTS = {"verify": _whole, "reading": _reading, "network": _network}
