"""Work pulled from the queue against work dealt out beforehand: uneven parts, one slow worker, a stub in place of the
encoder (it only waits, so that any machine has enough cores). Both in one run, with the same parts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import torch
from torch.distributed import PrefixStore, TCPStore

from dcae_cache.cache.listing import list_entries
from dcae_cache.cache.pages import Pages
from dcae_cache.cache.parts import PARTS_FOLDER
from dcae_cache.cache.plan import PLAN_SCHEMA, Plan, load_plan
from dcae_cache.config import RunOptions
from dcae_cache.encode.work_queue import Assignment, WorkQueue
from dcae_cache.files import make_folder
from dcae_cache.records import Origin, Part

from .report import judge, not_measured
from .stubs import StubSource, make_parts, stub_run

PULLED_TARGET = 1.2  # times the ideal


def main(args: list[str]) -> None:
    """Run both ways and print each one's time beside the ideal."""
    parser = argparse.ArgumentParser(prog="scripts/bench distributed", description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--slowness", type=float, default=4.0, help="how much longer the last worker takes")
    parser.add_argument("--parts", type=int, default=120)
    parser.add_argument("--seconds-per-image", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    draw = random.Random(options.seed)
    sizes = [max(1, round(draw.lognormvariate(3.2, 0.8))) for _ in range(options.parts)]  # about 34 images, uneven
    paces = [options.seconds_per_image] * (options.workers - 1) + [options.seconds_per_image * options.slowness]
    ideal = sum(sizes) / sum(1 / pace for pace in paces)
    print(f"{sum(sizes)} images in {len(sizes)} parts of {min(sizes)} to {max(sizes)}; {options.workers} workers,")
    print(f"the last one {options.slowness:g} times slower; ideal {ideal:.1f} s")
    for way in ("pulled", "dealt"):
        with tempfile.TemporaryDirectory() as out:
            seconds = _measure(way, Path(out), sizes, paces)
        print(f"{way:7} {seconds:6.1f} s  {seconds / ideal:.2f} x ideal")
        if way == "pulled":
            judge("pulled, times ideal", seconds / ideal, "<=", PULLED_TARGET)
    if torch.cuda.device_count() < 2:
        not_measured("several GPUs, and two processes on one", "there are no two GPUs here")


def _measure(way: str, out: Path, sizes: list[int], paces: list[float]) -> float:
    """Seconds from the moment all workers are ready until the last one has committed its last part."""
    plan = _plan(sizes)
    make_folder(out / PARTS_FOLDER)
    plan.save(out)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    WorkQueue(PrefixStore("bench", store), 0).publish(
        Assignment(recipe={}, parts=plan.largest_first(plan.part_numbers))
    )
    context = multiprocessing.get_context("spawn")
    ready, ends = context.Barrier(len(paces) + 1), context.Queue()
    workers = [
        context.Process(target=_work, args=(way, rank, len(paces), pace, out, store.port, ready, ends), daemon=True)
        for rank, pace in enumerate(paces)
    ]
    for worker in workers:
        worker.start()
    ready.wait()
    started = time.time()
    finished = [ends.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    assert len(list((out / PARTS_FOLDER).glob("*.parquet"))) == len(sizes)
    return max(finished) - started


def _plan(sizes: list[int]) -> Plan:
    table = list_entries(StubSource(sum(sizes)).entries()).whole()
    numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
    table = table.add_column(0, PLAN_SCHEMA.field("part"), pa.array(numbers, pa.int32()))
    return Plan(Pages.of_table(table), {}, Origin("stub"))


def _work(way: str, rank: int, count: int, pace: float, out: Path, port: int, ready: object, ends: object) -> None:
    options = RunOptions(device="cpu", workers=1, batch_size=4)
    run = stub_run(StubSource(1), out, options)
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(minutes=5))
    queue, plan = WorkQueue(PrefixStore("bench", store), rank), load_plan(out)
    assert plan is not None
    assignment = queue.assignment()

    def parts() -> Iterator[Part]:
        numbers = (
            queue.claims(assignment) if way == "pulled" else (n for n in sorted(assignment.parts) if n % count == rank)
        )
        return map(plan.part, numbers)

    ready.wait()  # type: ignore[attr-defined]
    make_parts(run, parts(), pace)
    ends.put(time.time())  # type: ignore[attr-defined]
