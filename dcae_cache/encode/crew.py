"""Who makes the parts of a run: this process alone, workers it starts on this machine, or the processes of a launcher.

Each crew is asked for the same thing, the same parts come out of each, and none waits for a process that is gone.
Knows nothing of plans or indexes.
"""

from __future__ import annotations

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch

from ..cache.commits import split_by_commit
from ..cache.parts import PartInfo
from ..cache.plan import Plan
from ..compute.devices import pick_device
from ..errors import WorkerError, one_line
from .distributed import Place, count_processes, host_store, join, launch
from .part_encoder import encode_parts
from .progress import Progress
from .reuse import stored_latents
from .run import Request, Run
from .work_queue import Job, Report, Watch, WorkQueue
from .worker import make_parts

LOST_SECONDS = 60.0  # without a sign of life, after which a process of a launcher counts as lost
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 30.0  # for workers to drop their part when the run is interrupted
_PARTING_SECONDS = 10.0  # for the others to hear the outcome before the leader is gone


class Crew(ABC):
    """Makes parts. ``device`` is where this process computes; ``lost`` says what became of processes that failed."""

    device: torch.device

    def __init__(self) -> None:
        self.lost: list[str] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.finish({"error": one_line(error)})

    @abstractmethod
    def encode(self, run: Run, plan: Plan, todo: list[int], gone: frozenset[str]) -> list[PartInfo]:
        """Have the parts with these numbers made; returns those that are committed afterwards.

        ``gone``: planned keys that the source has no more, whose latents may be wanted under other keys.
        """

    def finish(self, outcome: dict[str, Any]) -> None:  # noqa: B027 - most crews have nobody to tell
        """Tell the other processes, if they wait for it, what came of the run: its "summary", or an "error"."""

    def check(self, *, all_made: bool) -> None:
        """Raise WorkerError where processes failed and left parts undone."""
        if self.lost and not all_made:
            raise WorkerError(
                f"{len(self.lost)} of the run's processes failed: {'; '.join(self.lost[:3])}. The other parts are in "
                "the cache: run the same command again to add what is missing."
            )


def gather_crew(request: Request, place: Place | None) -> Crew:
    """The crew that the options and the launcher, if any, ask for. Raises UsageError where the two clash."""
    options = request.options
    count = count_processes(options.device, options.num_processes, place)
    if place is not None and place.world_size > 1:
        return LauncherCrew(request, place)
    return WorkerCrew(request, count) if count > 1 else Alone(request)


class Alone(Crew):
    """This process makes all parts."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.device = pick_device(request.options.device)

    def encode(self, run: Run, plan: Plan, todo: list[int], gone: frozenset[str]) -> list[PartInfo]:
        run.streams = torch.get_num_threads()
        return encode_parts(run, map(plan.part, todo), stored_latents(run, gone))


class WorkerCrew(Crew):
    """Workers on this machine, one for each GPU, make the parts; this process only watches them."""

    def __init__(self, request: Request, count: int) -> None:
        super().__init__()
        self.device = pick_device(request.options.device)
        self._request, self._count = request, count

    def encode(self, run: Run, plan: Plan, todo: list[int], gone: frozenset[str]) -> list[PartInfo]:
        run.num_processes = min(self._count, len(todo))
        server, store = host_store()
        queue = WorkQueue(store, -1)
        queue.publish(job_of(run, plan, todo, gone))
        watch = Watch(queue, range(run.num_processes))
        workers = launch("dcae_cache.encode.worker_process", run.num_processes, server.port)
        try:
            for worker in workers:
                _hand_over(worker, self._as_workers_get_it(run))
            while any(worker.poll() is None for worker in workers):
                time.sleep(_POLL_SECONDS)
                watch.update(run)
                run.show_progress()
        finally:
            _stop(workers)
            watch.update(run, at_once=True)
        run.show_progress()
        for rank, worker in enumerate(workers):
            self._note_end(rank, worker.returncode, watch.reports.get(rank))
        for ending in self.lost:
            run.notify(f"{ending}; the others went on.")
        return split_by_commit(plan, run.cache, run.fingerprint, todo)[0]

    def _as_workers_get_it(self, run: Run) -> Request:
        """The request with the model pinned to the commit that was found, so that no worker asks the hub again."""
        config = replace(run.config, revision=run.model.checkpoint.revision or run.config.revision)
        options = replace(run.options, offline=True, num_processes=None, part_range=None)
        return replace(self._request, config=config, options=options)

    def _note_end(self, rank: int, code: int, report: Report | None) -> None:
        if report is not None and report.error is not None:
            self.lost.append(f"rank {rank}: {report.error}")
        elif code < 0:
            self.lost.append(f"rank {rank} was killed by {signal.Signals(-code).name}")
        elif code > 0 or report is None or not report.finished:
            self.lost.append(f"rank {rank} ended with exit code {code}")


class LauncherCrew(Crew):
    """The processes of a launcher, on any number of machines. This one leads and makes parts too."""

    def __init__(self, request: Request, place: Place) -> None:
        super().__init__()
        store, self.device = join(place, request.options.device)
        self._place, self._queue = place, WorkQueue(store, place.rank)
        self._watch = Watch(self._queue, range(1, place.world_size))

    def encode(self, run: Run, plan: Plan, todo: list[int], gone: frozenset[str]) -> list[PartInfo]:
        run.num_processes = self._place.world_size
        job = job_of(run, plan, todo, gone)
        self._queue.publish(job)
        show = run.report
        run.report = self._with_the_others(run, show)
        try:
            make_parts(run, self._queue, job, self._place, plan.part)
        except Exception as error:  # the others go on; it is told at the end, with theirs
            self._lose(run, f"rank 0: {one_line(error)}")
        run.report = show
        self._wait_for_the_others(run)
        return split_by_commit(plan, run.cache, run.fingerprint, todo)[0]

    def finish(self, outcome: dict[str, Any]) -> None:
        """Tell the others and give them a moment to hear it: the store may end with this process."""
        with suppress(WorkerError):
            self._queue.finish(outcome)
            deadline = time.monotonic() + _PARTING_SECONDS
            waiting = {rank for rank, report in self._watch.reports.items()}
            while waiting and time.monotonic() < deadline:
                waiting = {rank for rank in waiting if not self._queue.has_left(rank)}
                time.sleep(0.05)

    def _with_the_others(self, run: Run, show: Callable[[Progress], None]) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            self._watch.update(run)
            show(progress)

        return report

    def _wait_for_the_others(self, run: Run) -> None:
        """Until each has finished, failed, or given no sign of life for a while."""
        waiting = {rank: (-1, time.monotonic()) for rank in range(1, self._place.world_size)}
        while waiting:
            self._watch.update(run)
            run.show_progress()
            for rank, (beat, since) in list(waiting.items()):
                report = self._watch.reports.get(rank)
                if report is not None and report.error is not None:
                    self._lose(run, f"rank {rank}: {report.error}")
                elif report is not None and report.beat != beat and not report.finished:
                    waiting[rank] = report.beat, time.monotonic()
                    continue
                elif report is None or not report.finished:
                    if time.monotonic() - since < LOST_SECONDS:
                        continue
                    self._lose(run, f"rank {rank} gave no sign of life for {LOST_SECONDS:.0f} s")
                del waiting[rank]
            time.sleep(_POLL_SECONDS)

    def _lose(self, run: Run, ending: str) -> None:
        self.lost.append(ending)
        run.notify(f"{ending}; the others go on.")


def job_of(run: Run, plan: Plan, todo: list[int], gone: frozenset[str]) -> Job:
    """The job for all processes of the run."""
    return Job(recipe=run.recipe, parts=plan.largest_first(todo), gone=sorted(gone), found=run.source.found())


def _hand_over(worker: subprocess.Popen[bytes], request: Request) -> None:
    """Tell a worker what was asked for. One that has died already shows in its exit code."""
    assert worker.stdin is not None
    with suppress(BrokenPipeError), worker.stdin as pipe:
        pipe.write(request.to_json().encode() + b"\n")


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Have every worker that still runs drop its part, and wait until the last one is gone."""
    running = [worker for worker in workers if worker.poll() is None]
    for worker in running:
        worker.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in running:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
