"""Each format's export against a plain loop that reads the same cache and calls torch.save for each sample; each in a
process of its own, in turn. A made cache of random latents, of two sizes, shows whether memory grows with it.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from dcae_cache import LatentDataset
from dcae_cache.cache.finalize import index_of, write_index
from dcae_cache.cache.listing import list_entries
from dcae_cache.cache.parts import PARTS_FOLDER, PartContent, commit_part, shard_header, tensor_name
from dcae_cache.cache.plan import entries_digest, make_plan
from dcae_cache.cache.recipe import ModelIdentity, fingerprint, recipe_of
from dcae_cache.config import EncodeConfig
from dcae_cache.export.exporter import ExportOptions
from dcae_cache.export.run import EXPORTERS, export_cache
from dcae_cache.records import Entry, Origin, Row

LOOP = "loop"


def main(args: list[str]) -> None:
    """Run loop and formats in turn over two caches and print a table, or be the process of one."""
    options = _parse(args)
    if options.variant:
        print(json.dumps(_run_variant(options.variant, options.cache)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        caches = options.caches or [
            _make_cache(Path(scratch) / f"{count}", count, options.resolution)
            for count in (options.images // 4, options.images)
        ]
        results: dict[str, list[list[dict[str, float]]]] = {}
        for variant in (LOOP, *options.formats):
            results[variant] = [[_in_process(variant, cache) for _ in range(options.repeats)] for cache in caches]
    _show(results, options)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench export", description=__doc__)
    parser.add_argument("--images", type=int, default=8192, help="of the larger cache; the smaller has a quarter")
    parser.add_argument("--resolution", type=int, default=512, help="of the images that the latents stand for")
    parser.add_argument(
        "--caches", type=Path, nargs=2, metavar="CACHE", help="a smaller and a larger one, not made ones"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--formats", nargs="+", choices=EXPORTERS, default=[name for name in EXPORTERS if name != "mds"]
    )
    parser.add_argument("--variant", choices=(LOOP, *EXPORTERS), help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(args)


def _make_cache(out: Path, count: int, resolution: int) -> Path:
    """Random bf16 latents with mirrored ones, captions and ten labels, as ``encode --flip`` would store them."""
    model = ModelIdentity("f32c32-mix", None, None, "0" * 64, 32, 32, 0.4552)
    recipe = recipe_of(EncodeConfig(resolution=resolution, bucket="square", flip=True), model)
    listing = list_entries(Entry(f"class{n % 10}/{n:07d}", f"{n:07d}.jpg", 1, 1) for n in range(count))
    plan = make_plan(listing, recipe, Origin("made"), 1024)
    (out / PARTS_FOLDER).mkdir(parents=True)
    plan.save(out)
    side, infos = resolution // 32, []
    for part in plan.parts():
        shape = (len(part.entries), 32, side, side)
        rows = [_row(entry, row, resolution) for row, entry in enumerate(part.entries)]
        tensors = {tensor_name(side, side, flip=flip): torch.randn(shape).bfloat16() for flip in (False, True)}
        content = PartContent(name=part.name, entries_sha256=entries_digest(part), rows=rows, tensors=tensors)
        infos.append(commit_part(out, content, shard_header(recipe, fingerprint(recipe)), 32))
    write_index(out, index_of(out, plan, recipe, infos), infos)
    LatentDataset(out).table(["key"])  # the reader's own file of rows is made once, not in the first run's time
    return out


def _row(entry: Entry, row: int, resolution: int) -> Row:
    return Row(
        key=entry.key,
        status="ok",
        bucket_height=resolution,
        bucket_width=resolution,
        row=row,
        height=resolution,
        width=resolution,
        caption=f"a photograph of something, the {entry.key}th of its kind, in the light of an afternoon",
        label=entry.key.partition("/")[0],
        source=entry.location,
    )


def _in_process(variant: str, cache: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "scripts.benchmarks", "export", "--variant", variant, "--cache", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _run_variant(variant: str, cache: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=cache.parent) as scratch, _Memory() as memory:
        started = time.perf_counter()
        if variant == LOOP:
            count = _loop(cache, Path(scratch))
        else:
            count = export_cache(cache, variant, Path(scratch) / "out", ExportOptions()).num_samples
        seconds = time.perf_counter() - started
    return {"images": count, "seconds": seconds, "peak_mib": memory.peak / 1024}


class _Memory:
    """The most memory of the process's own, looked at all the while: pages of mapped files aren't counted, since the
    system takes them back when it needs them. ``peak``: KiB."""

    def __enter__(self) -> _Memory:
        self.peak, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
            self.peak = max(self.peak, int(found[1]) if found else 0)


def _loop(cache: Path, out: Path) -> int:
    """What people write first; nothing is flushed to disk, and a kill leaves half a file."""
    dataset = LatentDataset(cache)
    for number in range(len(dataset)):
        torch.save(dict(dataset[number]), out / f"{number:08d}.pt")
    return len(dataset)


def _show(results: dict[str, list[list[dict[str, float]]]], options: argparse.Namespace) -> None:
    made = f"made latents of {options.resolution}x{options.resolution}, bf16 with mirrored ones"
    print(
        f"{options.caches[1] if options.caches else made}, torch {torch.__version__}, "
        f"Python {platform.python_version()}; median of {options.repeats}; peak MiB of the smaller, and the larger"
    )
    rates = {
        name: statistics.median(run["images"] / run["seconds"] for run in runs[1]) for name, runs in results.items()
    }
    print(f"{'':14}{'images':>8}{'images/s':>10}{'to loop':>9}{'peak MiB':>16}")
    for name, runs in results.items():
        peaks = [max(run["peak_mib"] for run in each) for each in runs]
        print(
            f"{name:14}{runs[1][0]['images']:8.0f}{rates[name]:10.0f}{rates[name] / rates[LOOP]:9.2f}"
            f"{peaks[0]:8.0f}{peaks[1]:8.0f}"
        )
