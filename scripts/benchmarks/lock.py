"""Decoding beside a thread that feeds a GPU: how long a launch takes, and how decoding scales, on threads and in
processes.

The device's thread is simulated: a launch is 450 operations that each hold the interpreter lock for 8 us and let go of
it for 8 us, as torch does. The decoders go through load_batches as in a run, but sleep in place of the work that they
do without the lock, so that more of them than this machine has cores can be tried; on threads they also hold the lock
for as long as real decoding was measured to. Where there are fewer cores than threads at work, waiting for a core
counts too; so the same is simulated with every time stretched, where it doesn't (stretched.py): that is judged.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dcae_cache.compute.cores import default_workers
from dcae_cache.config import EncodeConfig
from dcae_cache.images.pixels import load_pixels
from dcae_cache.images.views import Fitting
from dcae_cache.loading import decoder, rows
from dcae_cache.loading.batches import Batch, load_batches
from dcae_cache.loading.prefetch import Prefetch
from dcae_cache.loading.rows import LoadSettings
from dcae_cache.records import Part, Pixels
from dcae_cache.sources import open_source

from . import stub_decoder
from .encode import image_paths, make_photos
from .report import judge, show_table
from .stretched import OPERATION, OPERATIONS, simulate

LAUNCH_TARGET = 10e-3  # seconds
CYCLES = 40  # how often a decoding thread takes the lock for one image
CYCLES_FOR_PROCESSES = 2  # and one that hands it to a process
BUSY = 1.15  # times what a launch takes by itself
SHARE_NEEDED = 0.7  # of the rate of one decoder times their number


def main(args: list[str]) -> None:
    """Measure and print the tables."""
    options = _parse(args)
    print(f"{options.side} px; {default_workers()} cores; Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos or make_photos(Path(scratch) / "made", 200)
        held, free = _lock_per_image(image_paths(photos)[: options.limit], options)
        print(f"an image on a thread holds the lock {held * 1e3:.2f} ms of {(held + free) * 1e3:.2f} ms")
        os.environ[stub_decoder.SECONDS], os.environ[stub_decoder.SIDE] = str(held + free), str(options.side)
        handed = _beside_launches(photos, options, held, free)
        print(f"one handed to a process takes {handed * 1e3:.3f} ms of this process, most of it with the lock")
        _stretched(options, held, free, handed)
        _real_decoders(photos, options)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench lock", description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos; made ones unless given")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--decoders", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--limit", type=int, default=100, help="photos to measure the lock with")
    return parser.parse_args(args)


def _lock_per_image(paths: list[Path], options: argparse.Namespace) -> tuple[float, float]:
    """Seconds that load_pixels holds the interpreter lock for an image, and seconds without it; the least of several.

    A second thread does nothing but hold the lock whenever it can have it: what it doesn't get is what decoding held.
    """
    data = [path.read_bytes() for path in paths]
    rule = EncodeConfig(resolution=options.side, bucket="square").bucket_rule(32)
    alone = min(_seconds(lambda: [load_pixels(item, rule, 10**9) for item in data], time.process_time) for _ in "abc")
    held = alone
    stop, taken = threading.Event(), [0.0]

    def spin() -> None:
        while not stop.is_set():
            pass
        taken[0] = time.thread_time()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # decoding asks for the lock back at once
    for _ in range(3):
        stop.clear()
        before = time.perf_counter()
        spinner = threading.Thread(target=spin)
        spinner.start()
        for item in data:
            load_pixels(item, rule, 10**9)
        taken_in = time.perf_counter() - before
        stop.set()
        spinner.join()
        held = min(held, max(0.0, taken_in - taken[0]))
    sys.setswitchinterval(interval)
    return held / len(data), max(0.0, alone - held) / len(data)


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def _beside_launches(photos: Path, options: argparse.Namespace, held: float, free: float) -> float:
    """Print what threads and processes do to launches; seconds of this process's user time for an image that one of
    the processes decodes."""
    launch = _Launch()
    lines: list[Sequence[object]] = [("none", "", "", *launch.shown([launch() for _ in range(100)]))]
    before = decoder._PROGRAM
    decoder._PROGRAM = stub_decoder.PROGRAM
    rows.load_pixels = _StubOnThread(held, free, options.side)  # type: ignore[assignment]
    least = 1.0
    try:
        for name in ("threads", "processes"):
            for count in options.decoders:
                row = _row(photos, options, count, name == "processes", launch)
                lines.append((f"{count} {name}", f"{row.alone:.0f}", f"{row.beside:.0f}", *launch.shown(row.launches)))
                least = min(least, row.user_seconds) if name == "processes" else least
    finally:
        decoder._PROGRAM, rows.load_pixels = before, load_pixels
    show_table(("decoders", "images/s alone", "images/s beside", "launch, ms", "nine in ten within"), lines)
    return least


def _stretched(options: argparse.Namespace, held: float, free: float, handed: float) -> None:
    """The same in the simulation, where no one waits for a core, and the verdict."""
    undisturbed = simulate(0, 0, 1, 1, options.seconds)[1]
    if undisturbed > BUSY * 2 * OPERATIONS * OPERATION:
        print("this machine is busy with other work: a launch by itself takes too long, and so do all below")
    lines: list[Sequence[object]] = [("none", "", f"{undisturbed * 1e3:.1f}")]
    ways = {"threads": (held, free, CYCLES), "processes": (handed, held + free, CYCLES_FOR_PROCESSES)}
    for name, costs in ways.items():
        found = {count: simulate(count, *costs, options.seconds) for count in options.decoders}
        lines += [(f"{count} {name}", f"{rate:.0f}", f"{launch * 1e3:.1f}") for count, (rate, launch) in found.items()]
    most, least = max(found), min(found)
    print("stretched, with the costs above:")
    show_table(("decoders", "images/s beside launches", "launch, ms"), lines)
    judge(f"a launch beside {most} decoding processes, ms", found[most][1] * 1e3, "<", LAUNCH_TARGET * 1e3)
    share = found[most][0] * least / found[least][0] / most
    judge(f"the rate of {most} decoding processes over {most} times one's", share, ">=", SHARE_NEEDED)


@dataclass(frozen=True, slots=True)
class _Row:
    """Images a second alone and beside launches, the seconds of each launch, and this process's user time an image."""

    alone: float
    beside: float
    launches: list[float]
    user_seconds: float


def _row(photos: Path, options: argparse.Namespace, count: int, in_processes: bool, launch: _Launch) -> _Row:
    with _decoding(photos, options, count, in_processes) as done:
        time.sleep(1.0 + 0.5 * count * in_processes)  # until all have started
        images, user = done[0], resource.getrusage(resource.RUSAGE_SELF).ru_utime
        alone = _rate(done, lambda: time.sleep(options.seconds))
        user = (resource.getrusage(resource.RUSAGE_SELF).ru_utime - user) / max(1, done[0] - images)
        taken: list[float] = []
        deadline = time.perf_counter() + options.seconds
        beside = _rate(done, lambda: _until(deadline, launch, taken))
    return _Row(alone, beside, taken, user)


def _until(deadline: float, launch: _Launch, taken: list[float]) -> None:
    while time.perf_counter() < deadline:
        taken.append(launch())


def _rate(done: list[int], work: Callable[[], object]) -> float:
    before, start = done[0], time.perf_counter()
    work()
    return (done[0] - before) / (time.perf_counter() - start)


@contextmanager
def _decoding(photos: Path, options: argparse.Namespace, count: int, in_processes: bool) -> Iterator[list[int]]:
    """Decode the photos over and over on other threads; gives the number of images done."""
    source = open_source(str(photos))
    entries = tuple(source.entries())
    rule = EncodeConfig(resolution=options.side, bucket="square").bucket_rule(32)
    settings = LoadSettings(Fitting((rule,)), 10**9, lambda bucket: 32, count, processes=in_processes, notify=print)
    done, stop = [0], threading.Event()

    def parts() -> Iterator[Part]:
        number = 0
        while not stop.is_set():
            yield Part(number, entries)
            number += 1

    def consume() -> None:
        for item in loaded:
            done[0] += len(item.images) if isinstance(item, Batch) else 0

    loaded = Prefetch(load_batches(source, parts(), settings), depth=2)
    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        yield done
    finally:
        stop.set()
        consumer.join()
        loaded.close()


class _Launch:
    """One forward pass as the host sees it."""

    def __init__(self) -> None:
        block = bytes(2**22)
        best = min(_seconds(lambda: zlib.crc32(block), time.perf_counter) for _ in range(20))
        self._block = block[: max(2**13, int(len(block) * OPERATION / best))]  # smaller ones keep the lock

    def __call__(self) -> float:
        start = time.perf_counter()
        for _ in range(OPERATIONS):
            end = time.perf_counter() + OPERATION
            while time.perf_counter() < end:
                pass
            zlib.crc32(self._block)
        return time.perf_counter() - start

    @staticmethod
    def shown(taken: list[float]) -> tuple[str, str]:
        return f"{statistics.median(taken) * 1e3:.1f}", f"{sorted(taken)[int(0.9 * len(taken))] * 1e3:.1f}"


class _StubOnThread:
    """In place of load_pixels: as long with the lock and without it."""

    def __init__(self, held: float, free: float, side: int) -> None:
        self._held, self._free, self._pixels = held / CYCLES, free / CYCLES, stub_decoder.pixels_of(side)

    def __call__(self, *_: object) -> Pixels:
        for _ in range(CYCLES):
            end = time.perf_counter() + self._held
            while time.perf_counter() < end:
                pass
            time.sleep(self._free)
        return self._pixels


def _real_decoders(photos: Path, options: argparse.Namespace) -> None:
    """As many real ones as there are cores."""
    lines: list[Sequence[object]] = []
    counts = sorted({1, *(count for count in (2, 4, 8, 16) if count <= default_workers())})
    for count in counts:
        rates = []
        for in_processes in (False, True):
            with _decoding(photos, options, count, in_processes) as done:
                time.sleep(1.0 + 0.3 * count * in_processes)
                rates.append(_rate(done, lambda: time.sleep(options.seconds)))
        lines.append((count, *(f"{rate:.0f}" for rate in rates)))
    print(f"real decoding, up to as many as the {default_workers()} cores:")
    show_table(("workers", "threads, images/s", "processes, images/s"), lines)
