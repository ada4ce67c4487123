"""Shuffled batches of one bucket with captions, read by our reader and by others from the same samples.

Against: one .npy a sample, safetensors opened per sample as LightningDiT does, litdata, mosaicml-streaming, and the
limit: a bare gather from one memory-mapped file, without captions. Each in a process of its own with one thread; they
take turns, so that other work on the machine falls on all. All files are in the page cache, and each reader has read
for some seconds before it is timed.
litdata and mosaicml-streaming are left out where the interpreter ``--peers`` doesn't have them.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from .reader_data import Shape, write_linked_cache
from .report import judge, not_measured

FOREIGN = {"litdata": "litdata", "streaming": "streaming"}  # reader -> the module it needs
NAMES = ("ours", "npy", "lightningdit", "litdata", "streaming", "limit")
TARGETS = {"npy": 10.0, "lightningdit": 10.0, "litdata": 2.0, "streaming": 2.0, "limit": 0.5}


def main(args: list[str]) -> None:
    """Write the samples in every format, let the readers take turns, and print a table for each size."""
    options = _parse(args)
    names = [name for name in options.readers if _is_there(name, options)]
    with nullcontext(options.data) if options.data else tempfile.TemporaryDirectory() as scratch:
        print(
            f"one thread a reader, batches of {options.batch_size}, {options.part_size} samples a part, torch "
            f"{torch.__version__}, Python {platform.python_version()}; median of {options.rounds} turns"
        )
        for samples, cells in zip(options.samples, options.cells, strict=True):
            shape = Shape(samples, cells, options.part_size)
            _compare(Path(scratch) / f"{samples}-{cells}", shape, names, options)
        if options.rows:
            _open_many(Path(scratch) / "rows", options)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench reader", description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument(
        "--cells",
        type=int,
        nargs="+",
        default=[8, 4],
        help="sides of the first bucket in latent cells, even: for each of --samples, or one for all",
    )
    parser.add_argument("--part-size", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a turn takes")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds that each reads before it is timed")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the cache whose opening is timed; 0: none")
    parser.add_argument("--readers", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--peers", default=sys.executable, help="interpreter that has litdata and streaming")
    parser.add_argument("--data", type=Path, help="where samples are written and kept; else a temporary folder")
    parser.add_argument("--write-only", action="store_true", help="write what --data lacks, and measure nothing")
    options = parser.parse_args(args)
    if len(options.cells) == 1:
        options.cells *= len(options.samples)
    if len(options.cells) != len(options.samples):
        parser.error("--cells must be one number, or one for each of --samples")
    return options


def _is_there(name: str, options: argparse.Namespace) -> bool:
    module = FOREIGN.get(name)
    if module is None:
        return True
    done = subprocess.run([options.peers, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        not_measured(name, said[-1] if said else "it can't be imported")
    return done.returncode == 0


class _Reader:
    """The process of one reader, waiting to be told."""

    def __init__(self, name: str, folder: Path, shape: Shape, options: argparse.Namespace) -> None:
        python = options.peers if name in FOREIGN else sys.executable
        words = [str(n) for n in (shape.samples, shape.cells, shape.part_size, options.batch_size)]
        command = [python, "-m", "scripts.benchmarks.reader_process", name, str(folder), *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.rates: list[float] = []
        self.last = self._answer()
        self.opening = self.last["opening"]

    def read(self, batches: int) -> float:
        """Samples a second over that many batches."""
        assert self._process.stdin is not None
        print(batches, file=self._process.stdin, flush=True)
        self.last = self._answer()
        return self.last["samples"] / self.last["seconds"]

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        sys.exit(f"a reader ended early, with exit code {self._process.wait()}")


def _write(folder: Path, shape: Shape, names: list[str], options: argparse.Namespace) -> None:
    """The samples in the format of every reader, but for those that are there from an earlier call."""
    for name in names:
        whole = folder / f"{name}.whole"
        words = [str(n) for n in (shape.samples, shape.cells, shape.part_size)]
        if whole.exists() and whole.read_text().split() == words:
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        python = options.peers if name in FOREIGN else sys.executable
        code = (
            "import sys; from pathlib import Path; from scripts.benchmarks import reader_data as data;"
            "data.WRITERS[sys.argv[1]](Path(sys.argv[2]), data.Shape(*map(int, sys.argv[3:])))"
        )
        subprocess.run([python, "-c", code, name, str(folder / name), *words], check=True, stdout=subprocess.DEVNULL)
        whole.write_text(" ".join(words))


def _compare(folder: Path, shape: Shape, names: list[str], options: argparse.Namespace) -> None:
    _write(folder, shape, names, options)
    if options.write_only:
        return
    for name in names:
        for path in (folder / name).rglob("*"):  # into the page cache
            if path.is_file():
                path.read_bytes()
    readers = {name: _Reader(name, folder / name, shape, options) for name in names}
    turns, rate = {}, 0.0
    for name, reader in readers.items():
        until = time.perf_counter() + options.warm_up  # mapped pages are slow when they are touched first
        while time.perf_counter() < until:
            rate = reader.read(20)
        turns[name] = max(4, int(rate * options.seconds / options.batch_size))
    for _ in range(options.rounds):
        for name, reader in readers.items():
            reader.rates.append(reader.read(turns[name]))
    _show(shape, readers)
    for reader in readers.values():
        reader.close()


def _show(shape: Shape, readers: dict[str, _Reader]) -> None:
    sides = " and ".join(f"32x{height}x{width}" for height, width in shape.buckets)
    print(f"\n{shape.samples:,} samples of {shape.sample_bytes / 1024:g} KiB: bf16/fp16 latents of {sides}\n")
    print("| reader | samples/s | ours / it | target | opening, s | descriptors | own MiB | file MiB |")
    print("|---|---|---|---|---|---|---|---|")
    ours = statistics.median(readers["ours"].rates) if "ours" in readers else float("nan")
    for name, reader in readers.items():
        rate, held = statistics.median(reader.rates), reader.last
        print(
            f"| {name} | {rate:,.0f} | {ours / rate:.2f} | {TARGETS.get(name, '')} | {reader.opening:.2f} "
            f"| {held['descriptors']} | {held['own_mib']} | {held['file_mib']} |"
        )
    print()
    for name in (name for name in readers if name in TARGETS and "ours" in readers):
        found = ours / statistics.median(readers[name].rates)
        judge(
            f"samples/s over {name}'s, {shape.samples:,} of {shape.sample_bytes / 1024:g} KiB",
            found,
            ">=",
            TARGETS[name],
        )


def _open_many(folder: Path, options: argparse.Namespace) -> None:
    """Time from nothing to a dataset, the first time and again, in processes of their own."""
    write_linked_cache(folder, options.rows, options.part_size)
    code = (
        "import sys, time; from dcae_cache import LatentDataset; import torch;"
        "start = time.perf_counter(); dataset = LatentDataset(sys.argv[1]); size = len(dataset);"
        "opened = time.perf_counter(); dataset[size // 2];"
        "print(size, opened - start, time.perf_counter() - opened)"
    )
    print()
    for which in ("the first time", "again"):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        size, opening, first = done.stdout.split()
        print(
            f"opening {int(size):,} rows in {options.rows // options.part_size:,} parts {which}: {float(opening):.2f} "
            f"s, the first sample {float(first):.3f} s, with Python's start {time.perf_counter() - started:.1f} s"
        )
