"""A million samples in ten thousand parts, with a stub in place of files and network: do planning, queueing,
committing and finalising stay flat per part, and within a gigabyte?
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from torch.distributed import PrefixStore, TCPStore

from dcae_cache.cache.commits import split_by_commit
from dcae_cache.cache.finalize import index_of, write_index
from dcae_cache.cache.growth import grow_plan
from dcae_cache.cache.listing import list_entries
from dcae_cache.cache.parts import PARTS_FOLDER
from dcae_cache.cache.plan import load_plan, make_plan
from dcae_cache.config import RunOptions
from dcae_cache.encode.work_queue import Assignment, WorkQueue
from dcae_cache.files import make_folder
from dcae_cache.records import Part

from .memory import peak_mib
from .report import judge
from .stubs import StubSource, make_parts, stub_run

PEAK_MIB = 1024


def main(args: list[str]) -> None:
    """Go through all steps of a run and print what each took."""
    parser = argparse.ArgumentParser(prog="scripts/bench simulation", description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--part-size", type=int, default=100)
    parser.add_argument("--plan-only", action="store_true", help="make no parts: plan, look for parts, plan again")
    parser.add_argument("--out", type=Path, help="a folder on the disk to measure; a temporary one unless given")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory(dir=options.out) as out:
        simulate = _plan if options.plan_only else _simulate
        simulate(Path(out), StubSource(options.samples), options.part_size)
        judge("MiB at the peak", peak_mib(), "<=", PEAK_MIB)


def _plan(out: Path, source: StubSource, part_size: int) -> None:
    """What a run does before it makes any part, and again at the next call."""
    run = stub_run(source, out, RunOptions(device="cpu", workers=1, part_size=part_size))
    make_folder(out / PARTS_FOLDER)
    clock = _Clock()
    make_plan(list_entries(source.entries()), run.recipe, run.origin, part_size).save(out)
    clock.tick("list, look for duplicates, plan")
    known = load_plan(out)
    assert known is not None
    again, changes = grow_plan(known, list_entries(source.entries()), part_size)
    assert again is known
    assert (changes.new, changes.changed, changes.vanished) == (0, 0, 0)
    clock.tick("list and plan again, nothing new")
    todo = split_by_commit(again, out, run.fingerprint)[1]
    assert len(todo) == again.num_parts
    again.largest_first(todo)
    clock.tick("look for every part")
    backwards = list_entries(source.backwards())
    clock.tick("list in another order")
    changes = grow_plan(known, backwards, part_size)[1]
    assert (changes.new, changes.changed, changes.vanished) == (0, 0, 0)
    clock.tick("compare with the plan")


def _simulate(out: Path, source: StubSource, part_size: int) -> None:
    run = stub_run(source, out, RunOptions(device="cpu", workers=1, batch_size=part_size, part_size=part_size))
    make_folder(out / PARTS_FOLDER)
    clock = _Clock()
    plan = make_plan(list_entries(source.entries()), run.recipe, run.origin, part_size)
    plan.save(out)
    clock.tick("list and plan")
    todo = split_by_commit(plan, out, run.fingerprint)[1]
    clock.tick("find out that nothing is committed")

    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    WorkQueue(PrefixStore("bench", server), 0).publish(Assignment(recipe=run.recipe, parts=plan.largest_first(todo)))
    store = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=timedelta(minutes=5))
    queue = WorkQueue(PrefixStore("bench", store), 1)
    clock.tick("publish the assignment")
    marks: list[float] = []
    make_parts(run, _marked(queue, out, marks))
    clock.tick("make and commit all parts")
    for first in range(0, len(marks) - 1, max(1, len(marks) // 5)):
        last = min(first + max(1, len(marks) // 5), len(marks) - 1)
        print(f"    parts {first:6} to {last:6}: {(marks[last] - marks[first]) / (last - first) * 1e3:6.1f} ms a part")

    infos, todo = split_by_commit(plan, out, run.fingerprint)
    assert not todo
    clock.tick("read what every part says of itself")
    write_index(out, index_of(out, plan, run.recipe, infos), infos)
    clock.tick("write the index")
    with multiprocessing.get_context("spawn").Pool(1) as another:
        seconds, peak = another.apply(_confirm, (out, source, part_size))
    print(f"confirm the finished cache, in another process: {seconds:.1f} s, peak {peak:.0f} MiB")
    if plan.num_entries == 1_000_000:
        judge("s to confirm the finished cache", seconds, "<", 5.0)
        judge("MiB at the peak of that", peak, "<", 500.0)


def _confirm(out: Path, source: StubSource, part_size: int) -> tuple[float, float]:
    """Find out that every part is made, as the next run would: seconds, and the process's peak in MiB."""
    run = stub_run(source, out, RunOptions(device="cpu", workers=1, part_size=part_size))
    started = time.perf_counter()
    known = load_plan(out)
    assert known is not None
    again, changes = grow_plan(known, list_entries(source.entries()), part_size)
    assert (changes.new, changes.changed, changes.vanished) == (0, 0, 0)
    infos, todo = split_by_commit(again, out, run.fingerprint)
    assert not todo
    write_index(out, index_of(out, again, run.recipe, infos), infos)
    return time.perf_counter() - started, peak_mib()


def _marked(queue: WorkQueue, out: Path, marks: list[float]) -> Iterator[Part]:
    """The claimed parts; when each was claimed is noted."""
    plan = load_plan(out)
    assert plan is not None
    for number in queue.claims(queue.assignment()):
        marks.append(time.perf_counter())
        yield plan.part(number)


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def tick(self, what: str) -> None:
        now, peak = time.perf_counter(), peak_mib()
        print(f"{what:36} {now - self._last:8.1f} s   peak {peak:6.0f} MiB", flush=True)
        self._last = time.perf_counter()
