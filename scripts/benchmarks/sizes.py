"""Several sizes of each image in one pass (``--resolution 256,512``) against a run for each size: the time of both,
and whether their latents are the same bits. The command line, in processes of their own, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dcae_cache import LatentDataset

from .encode import MODEL, make_photos
from .report import judge, show_table


def main(args: list[str]) -> None:
    """Time both ways and print a table."""
    parser = argparse.ArgumentParser(prog="scripts/bench sizes", description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos; made ones unless given")
    parser.add_argument("--limit", type=int, default=100, help="so many of them")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos or make_photos(Path(scratch) / "made", options.limit)
        together, apart = [], []
        for turn in range(options.repeats):
            folder = Path(scratch) / f"{turn}"
            together.append(_encode(photos, folder / "all", ",".join(map(str, options.sizes)), options.limit))
            apart.append([_encode(photos, folder / f"{size}", f"{size}", options.limit) for size in options.sizes])
        last = Path(scratch) / f"{options.repeats - 1}"
        same, count = _same(last / "all", [last / f"{size}" for size in options.sizes])
    print(f"{MODEL} fp32, {count} latents; median of {options.repeats}")
    rows = [(f"{size}", f"{statistics.median(turn[i] for turn in apart):.1f}") for i, size in enumerate(options.sizes)]
    alone, once = statistics.median(map(sum, apart)), statistics.median(together)
    show_table(("sizes", "seconds"), [*rows, ("one after the other", f"{alone:.1f}"), ("in one pass", f"{once:.1f}")])
    print(f"one pass over one after the other: {once / alone:.2f}")
    judge("share of latents that are the same bits", same / count, ">=", 1.0)


def _encode(photos: Path, out: Path, sizes: str, limit: int) -> float:
    command = [sys.executable, "-m", "dcae_cache.cli.main", "encode", str(photos), "--out", str(out)]
    command += ["--model", MODEL, "--dtype", "fp32", "--device", "cpu", "--resolution", sizes, "--limit", str(limit)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def _same(together: Path, apart: list[Path]) -> tuple[int, int]:
    """How many latents of the one cache are the same in the others, and how many it has."""
    caches = [LatentDataset(cache, columns=("key", "image", "resolution")) for cache in (together, *apart)]
    found = [
        {
            (sample["image"] or sample["key"], sample["resolution"]): sample["latents"]
            for sample in map(cache.__getitem__, range(len(cache)))
        }
        for cache in caches
    ]
    others = {place: latents for cache in found[1:] for place, latents in cache.items()}
    same = sum(place in others and torch.equal(latents, others[place]) for place, latents in found[0].items())
    return same, len(others)
