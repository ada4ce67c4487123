"""A whole run with f32c32-tiny against the bare encoder, and against what people write first: a DataLoader that
decodes with PIL, ``encode`` on each batch and one ``np.save`` per image. Each in a process of its own, in turn.

Of the run's two halves, each alone with all cores, comes its limit: where a CPU encodes they share the cores, so that
the time of an image is the sum of both; beside a GPU it is the longer one.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch

from dcae_cache import DCAE, encode_dataset
from dcae_cache.compute.cores import default_workers
from dcae_cache.compute.ranges import to_unit
from dcae_cache.config import EncodeConfig, RunOptions
from dcae_cache.encode.part_encoder import decode_in_processes
from dcae_cache.images.buckets import BucketRule
from dcae_cache.images.formats import IMAGE_SUFFIXES
from dcae_cache.images.pixels import load_pixels
from dcae_cache.images.views import Fitting
from dcae_cache.loading.batches import load_batches
from dcae_cache.loading.rows import LoadSettings
from dcae_cache.models.latent_encoder import LatentEncoder
from dcae_cache.records import Part
from dcae_cache.sources import open_source

from .memory import peak_mib
from .report import judge, show_table

VARIANTS = ("ours", "loop", "bare", "encoder", "decoders")
MODEL = "f32c32-tiny"
LIMIT_TARGET, LOOP_TARGET = 0.95, 1.2  # of the limit; times the loop
MOST_BATCHES = 50  # of the encoder alone


def main(args: list[str]) -> None:
    """Run the variants in turn and print a table, or be the process of one variant."""
    options = _parse(args)
    if options.variant:
        print(json.dumps(_run_variant(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos or make_photos(Path(scratch) / "made", 200)
        folder = photos if options.links == 1 else _link(photos, options.links, Path(scratch) / "linked")
        results: dict[str, list[dict[str, float]]] = {variant: [] for variant in options.variants}
        for _ in range(options.repeats):
            for variant in options.variants:
                results[variant].append(_in_process(variant, folder, options))
    _show(results, options)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench encode", description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos; made ones unless given")
    parser.add_argument(
        "--links", type=int, default=1, help="link the folder this many times, to see memory stay flat"
    )
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--part-size", type=int, default=256, help="samples per part: what memory depends on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args(args)


def _in_process(variant: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "scripts.benchmarks", "encode", "--variant", variant, "--photos", str(folder)]
    for name in ("resolution", "batch_size", "workers", "part_size", "device", "dtype"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _run_variant(options: argparse.Namespace) -> dict[str, float]:
    runs = {"ours": _ours, "loop": _loop, "bare": _bare, "encoder": _encoder, "decoders": _decoders}
    with tempfile.TemporaryDirectory() as scratch:
        before = time.process_time()
        result = {"cpu_seconds": 0.0, **runs[options.variant](options, Path(scratch))}
        result["cpu_seconds"] = result["cpu_seconds"] or time.process_time() - before
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {**result, "peak_mib": peak_mib() + children}


def _ours(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    config = EncodeConfig(model=MODEL, resolution=options.resolution, bucket="square", dtype=options.dtype)
    how = RunOptions(
        device=options.device,
        workers=options.workers,
        batch_size=options.batch_size,
        part_size=options.part_size,
    )
    summary = encode_dataset(options.photos, scratch / "out", config, how)
    # From the start of the run to its end, listing, loading the model and writing included.
    return {"images": summary.encoded, "seconds": summary.seconds, "waited": summary.idle_share * summary.seconds}


class _PlainFolder(torch.utils.data.Dataset[tuple[torch.Tensor, str]]):
    def __init__(self, root: Path, side: int) -> None:
        self.paths, self.side = image_paths(root), side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, str]:
        from PIL import Image

        image = Image.open(self.paths[number]).convert("RGB")
        scale = self.side / min(image.size)
        width, height = (max(self.side, round(size * scale)) for size in image.size)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        fitted = image.resize((width, height), Image.Resampling.BICUBIC)
        crop = np.asarray(fitted.crop((left, top, left + self.side, top + self.side)))
        return torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 127.5 - 1, f"{number:08d}"


def _loop(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    started = time.perf_counter()
    ae = _autoencoder(options)
    data = _PlainFolder(options.photos, options.resolution)
    loader = torch.utils.data.DataLoader(data, batch_size=options.batch_size, num_workers=options.workers)
    for pixels, names in loader:
        latents = (ae.encode(pixels) * ae.scaling_factor).float().cpu().numpy()
        for name, latent in zip(names, latents, strict=True):
            np.save(scratch / f"{name}.npy", latent)
    return {"images": len(data), "seconds": time.perf_counter() - started}


def _bare(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """The encoder alone: pixels of the first images, decoded beforehand, over and over."""
    ae = _autoencoder(options)
    rule = EncodeConfig(resolution=options.resolution, bucket="square").bucket_rule(32)
    paths = image_paths(options.photos)
    first = [load_pixels(path.read_bytes(), rule, 10**9).data for path in paths[: options.batch_size]]
    pixels = to_unit(torch.from_numpy(np.stack(first)).permute(0, 3, 1, 2))
    ae.encode(pixels)
    batches = max(1, min(len(paths), 400) // options.batch_size)
    started = time.perf_counter()
    for _ in range(batches):
        latents = ae.encode(pixels)
    latents.cpu()
    return {"images": batches * len(first), "seconds": time.perf_counter() - started}


def _encoder(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """The encoder as a run uses it, on pixels that are there."""
    rule, images = _rule(options), []
    for path in image_paths(options.photos)[: options.batch_size]:
        images.append(load_pixels(path.read_bytes(), rule, 10**9).data)
    streams = min(torch.get_num_threads(), default_workers())
    with LatentEncoder(_autoencoder(options), options.dtype, 1.0, False, streams, lambda _: len(images)) as encoder:
        encoder.encode(images)
        batches = min(len(image_paths(options.photos)) // len(images), MOST_BATCHES) or 1
        started, before = time.perf_counter(), time.process_time()
        under_way = deque([encoder.launch(encoder.prepare(images)) for _ in range(encoder.streams)])
        for _ in range(batches):
            under_way.popleft().result()
            under_way.append(encoder.launch(encoder.prepare(images)))
        seconds, cpu = time.perf_counter() - started, time.process_time() - before
        while under_way:
            under_way.popleft().result()
    return {"images": batches * len(images), "seconds": seconds, "cpu_seconds": cpu}


def _decoders(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """The loading of a run, to batches of pixels that nobody wants."""
    started, before = time.perf_counter(), time.process_time()
    source = open_source(str(options.photos))
    entries = tuple(source.entries())
    processes = decode_in_processes(torch.device(options.device), options.workers, default_workers())
    settings = LoadSettings(
        Fitting((_rule(options),)), 10**9, lambda bucket: options.batch_size, options.workers, processes=processes
    )
    for _ in load_batches(source, [Part(0, entries)], settings):
        pass
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    return {"images": len(entries), "seconds": seconds, "cpu_seconds": cpu}


def _rule(options: argparse.Namespace) -> BucketRule:
    return EncodeConfig(resolution=options.resolution, bucket="square").bucket_rule(32)


def _autoencoder(options: argparse.Namespace) -> DCAE:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    return DCAE(MODEL, options.device, dtype, with_decoder=False)


def image_paths(root: Path) -> list[Path]:
    """The images of a folder, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def make_photos(root: Path, count: int) -> Path:
    """A folder of so many smooth JPEGs."""
    from PIL import Image

    root.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(root / f"{number:04d}.jpg", quality=90)
    return root


def _link(photos: Path, times: int, root: Path) -> Path:
    """Hard to tell from so many folders of their own: each file linked under another name."""
    for number in range(times):
        for path in image_paths(photos):
            target = root / f"{number:03d}" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())
    return root


def _show(results: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    print(
        f"{MODEL} {options.dtype}, {options.resolution}x{options.resolution}, batch {options.batch_size}, "
        f"{options.workers} workers, device {options.device}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, Python {platform.python_version()}; median of {options.repeats}"
    )
    rates = {name: statistics.median(run["images"] / run["seconds"] for run in runs) for name, runs in results.items()}
    lines = []
    for name, runs in results.items():
        waited = statistics.median(run.get("waited", 0.0) / run["seconds"] for run in runs)
        cpu = statistics.median(run["cpu_seconds"] / run["images"] for run in runs)
        lines.append(
            (
                *(name, f"{runs[0]['images']:.0f}", f"{rates[name]:.1f}", f"{cpu * 1e3:.1f}"),
                f"{max(run['peak_mib'] for run in runs):.0f}",
                f"{waited:.0%}" if name == "ours" else "",
                f"{rates['ours'] / rates[name]:.2f}" if "ours" in rates and name != "ours" else "",
            )
        )
    header = "", "images", "images/s", "CPU ms an image", "peak MiB", "waited for input", "ours over it"
    show_table(header, lines)
    if {"ours", "loop"} <= set(rates):
        judge("ours over the loop", rates["ours"] / rates["loop"], ">=", LOOP_TARGET)
    if {"ours", "encoder", "decoders"} <= set(rates):
        _judge_limit(results, rates, options)


def _judge_limit(
    results: dict[str, list[dict[str, float]]], rates: dict[str, float], options: argparse.Namespace
) -> None:
    """How much is reached of what encoder and decoders allow; on a CPU also by the time that all cores worked."""
    if options.device == "cpu":
        limit = 1 / (1 / rates["encoder"] + 1 / rates["decoders"])
        turns = zip(*(results[name] for name in ("ours", "encoder", "decoders")), strict=True)
        costs = [[run["cpu_seconds"] / run["images"] for run in turn] for turn in turns]
        share = statistics.median((encoder + decoders) / ours for ours, encoder, decoders in costs)
        print(f"CPU time of encoder and decoders over that of the whole run: {share:.3f}")
    else:
        limit = min(rates["encoder"], rates["decoders"])
    print(f"limit of a run: {limit:.1f} images/s ({rates['encoder']:.1f} encoded, {rates['decoders']:.1f} decoded)")
    judge("share of the limit that a whole run reaches", rates["ours"] / limit, ">=", LIMIT_TARGET)
