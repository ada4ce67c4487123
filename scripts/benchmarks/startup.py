"""What a command costs before it does anything: help, what a cache holds, and a run that finds everything made. Each
runs in a process of its own, whose CPU time is what counts: other work on the machine is not in it.

The cache of the last two is made here: real files of a folder (links to one image), real tables, a latent of one cell.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dcae_cache.cache.finalize import index_of, write_index
from dcae_cache.cache.listing import list_entries
from dcae_cache.cache.parts import PARTS_FOLDER, PartContent, commit_part, shard_header, tensor_name
from dcae_cache.cache.plan import entries_digest, make_plan
from dcae_cache.config import EncodeConfig, RunOptions
from dcae_cache.encode.run import Request, start_run
from dcae_cache.files import make_folder
from dcae_cache.records import Part, Row
from dcae_cache.sources import SourceOptions

from .report import judge

CONFIG = EncodeConfig(model="f32c32-tiny", resolution=32, bucket="square")
ENCODE = ("--model", CONFIG.model, "--resolution", "32", "--bucket", "square", "--device", "cpu")
# Each process leaves its largest size behind; what a parent learns of that counts the parent's own, too.
_REPORTING = """
import atexit, os, pathlib, runpy, sys
from scripts.benchmarks.memory import peak_mib
report = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: report.write_text(str(peak_mib())))
"""
_PROGRAM = 'runpy.run_module("dcae_cache.cli.main", run_name="__main__")'
# What no run can do without, if it is to notice a file that was replaced: the limit of the last command.
_ASKING = """
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        os.stat(folder + "/" + name)
"""
_IN_A_FOLDER, _LINKS = 1000, 30_000


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process: seconds on the clock and on the CPU, and its largest size in MiB."""

    wall: float
    cpu: float
    peak: float


def main(args: list[str]) -> None:
    """Run each command in turn and print a table with the targets."""
    parser = argparse.ArgumentParser(prog="scripts/bench startup", description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000, help="of the finished cache")
    parser.add_argument("--part-size", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a folder on the disk to measure; a temporary one unless given")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory(dir=options.out) as scratch:
        photos, cache, first = (Path(scratch) / name for name in ("photos", "cache", "first"))
        make_photos(photos, options.samples)
        make_cache(photos, cache, options.part_size)
        few = Path(scratch) / "few"
        make_photos(few, 1)
        asking = "its limit: asked about each file"
        commands: dict[str, tuple[Sequence[str], str]] = {
            "--help": (("--help",), "no torch, numpy or pyarrow"),
            "models": (("models",), ""),
            "info": (("info", str(cache)), ""),
            "first image": (("encode", str(few), "--out", str(first), "--overwrite", *ENCODE), ""),
            "nothing to do": (("encode", str(photos), "--out", str(cache), *ENCODE), "1 M: 5 s, 500 MiB"),
            asking: ((str(photos),), ""),
        }
        print(f"{options.samples} samples; medians of {options.repeats}")
        print("| command | seconds | CPU seconds | peak MiB | target |\n|---|---|---|---|---|")
        found: dict[str, Cost] = {}
        for name, (command, target) in commands.items():
            costs = []
            for number in range(options.repeats):
                again = [f"{part}-{number}" if part == str(first) else part for part in command]
                costs.append(measure(again, _ASKING if name == asking else _PROGRAM))
            medians = (statistics.median(getattr(cost, kind) for cost in costs) for kind in Cost.__slots__)
            cost = found[name] = Cost(*medians)
            print(f"| {name} | {cost.wall:.2f} | {cost.cpu:.2f} | {cost.peak:.0f} | {target} |", flush=True)
        if options.samples == 1_000_000:
            print()
            judge("a run that finds a million samples made, s", found["nothing to do"].wall, "<", 5.0)
            judge("its peak, MiB", found["nothing to do"].peak, "<", 500.0)


def measure(arguments: Sequence[str], program: str) -> Cost:
    """What a program of Python's costs with these arguments. Raises RuntimeError where it fails."""
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile() as report:
        command = [sys.executable, "-c", _REPORTING + program, report.name, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
        peak = float(Path(report.name).read_text())
    return Cost(time.perf_counter() - started, used.ru_utime + used.ru_stime, peak)


def make_photos(folder: Path, count: int) -> None:
    """``count`` names of one small image, a thousand to a folder."""
    image = folder / "image"
    folder.mkdir(parents=True)
    for number in range(count):
        place = folder / f"{number // _IN_A_FOLDER:06d}"
        if number % _IN_A_FOLDER == 0:
            place.mkdir()
        if number % _LINKS == 0:  # file systems allow so many to a file, and not many more
            image.unlink(missing_ok=True)
            Image.new("RGB", (32, 32), (90, 120, 60)).save(image, "JPEG")
        os.link(image, place / f"{number:09d}.jpg")
    image.unlink()


def make_cache(photos: Path, out: Path, part_size: int) -> None:
    """The cache that encoding the folder would leave, but for the values of its latents."""
    options = RunOptions(device="cpu", part_size=part_size)
    request = Request(source=str(photos), out=out, config=CONFIG, options=options, source_options=SourceOptions())
    run = start_run(request, torch.device("cpu"))
    plan = make_plan(list_entries(run.source.entries()), run.recipe, run.origin, part_size)
    make_folder(out / PARTS_FOLDER)
    plan.save(out)
    header, channels = shard_header(run.recipe, run.fingerprint), run.recipe["latent_channels"]
    infos = []
    for part in plan.parts():
        tensors = {tensor_name(1, 1): torch.zeros(len(part.entries), channels, 1, 1, dtype=torch.bfloat16)}
        content = PartContent(
            name=part.name, entries_sha256=entries_digest(part), rows=_rows_of(part), tensors=tensors
        )
        infos.append(commit_part(out, content, header, channels))
    write_index(out, index_of(out, plan, run.recipe, infos), infos)


def _rows_of(part: Part) -> list[Row]:
    return [
        Row(
            key=entry.key,
            status="ok",
            bucket_height=32,
            bucket_width=32,
            row=row,
            height=32,
            width=32,
            resized_height=32,
            resized_width=32,
            crop_top=0,
            crop_left=0,
            label=Path(entry.key).parent.name,
            source=entry.location,
            source_bytes=entry.num_bytes,
        )
        for row, entry in enumerate(part.entries)
    ]
