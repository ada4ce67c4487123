"""Who makes the parts of a run: this process alone, workers it starts on this machine, or the processes of a launcher.

Each crew is asked for the same thing, the same parts come out of each, and none waits for a process that is gone.
Knows nothing of batches or indexes.
"""

from __future__ import annotations

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import torch

from ..cache.commits import split_by_commit
from ..cache.parts import PartInfo
from ..cache.plan import Plan
from ..compute.cores import default_workers
from ..compute.devices import pick_device
from ..errors import WorkerError, one_line
from .core_shares import decoding_threads
from .distributed import ProcessRank, count_processes, host_store, join, launch
from .part_encoder import OpenEncoder, make_parts
from .progress import Counter
from .run import Request, Run
from .work_queue import Assignment, Watch, WorkerStatus, WorkQueue

_WORKER = "dcae_cache.encode.worker_process"
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
            self.announce({"error": one_line(error)})

    @abstractmethod
    def make(self, run: Run, plan: Plan, todo: list[int], gone: frozenset[str], counter: Counter) -> list[PartInfo]:
        """Have the parts with these numbers made; returns those that are committed afterwards.

        ``gone``: planned keys that the source has no more, whose latents may be wanted under other keys.
        """

    def announce(self, outcome: dict[str, Any]) -> None:  # noqa: B027 - most crews have nobody to tell
        """Tell the other processes, if they wait for it, what came of the run: its "summary", or an "error"."""

    def check(self, *, all_made: bool) -> None:
        """Raise WorkerError where processes failed and left parts undone."""
        if self.lost and not all_made:
            raise WorkerError(
                f"{len(self.lost)} of the run's processes failed: {'; '.join(self.lost[:3])}. The other parts are in "
                "the cache: run the same command again to add what is missing."
            )


def gather_crew(request: Request, own: ProcessRank | None, open_encoder: OpenEncoder) -> Crew:
    """The crew that the options and the launcher, if any, ask for. Raises UsageError where the two clash."""
    options = request.options
    count = count_processes(options.device, options.num_processes, own)
    if own is not None and own.world_size > 1:
        return LauncherCrew(request, own, open_encoder)
    return WorkerCrew(request, count) if count > 1 else Alone(request, open_encoder)


class Alone(Crew):
    """This process makes all parts."""

    def __init__(self, request: Request, open_encoder: OpenEncoder) -> None:
        super().__init__()
        self.device = pick_device(request.options.device)
        self._open_encoder = open_encoder

    def make(self, run: Run, plan: Plan, todo: list[int], gone: frozenset[str], counter: Counter) -> list[PartInfo]:
        workers = run.options.workers or default_workers()
        return make_parts(run, map(plan.part, todo), gone, workers, self._open_encoder, counter)


class WorkerCrew(Crew):
    """Workers on this machine, one for each GPU, make the parts; this process only watches them."""

    def __init__(self, request: Request, count: int) -> None:
        super().__init__()
        self.device = pick_device(request.options.device)
        self._request, self._count = request, count

    def make(self, run: Run, plan: Plan, todo: list[int], gone: frozenset[str], counter: Counter) -> list[PartInfo]:
        counter.num_processes = min(self._count, len(todo))
        server, store = host_store()
        queue = WorkQueue(store, -1)
        queue.publish(assign(run, plan, todo, gone))
        watch = Watch(queue, range(counter.num_processes))
        workers = launch(_WORKER, counter.num_processes, server.port)
        try:
            for worker in workers:
                _hand_over(worker, self._as_workers_get_it(run))
            while any(worker.poll() is None for worker in workers):
                time.sleep(_POLL_SECONDS)
                watch.update(counter)
                counter.show()
        finally:
            _stop(workers)
            watch.update(counter, at_once=True)
        counter.show()
        for rank, worker in enumerate(workers):
            self._note_end(rank, worker.returncode, watch.statuses.get(rank))
        for ending in self.lost:
            counter.notify(f"{ending}; the others went on.")
        return split_by_commit(plan, run.cache, run.fingerprint, todo)[0]

    def _as_workers_get_it(self, run: Run) -> Request:
        """The request with the model pinned to the commit that was found, so that no worker asks the hub again."""
        config = replace(run.config, revision=run.model.checkpoint.revision or run.config.revision)
        options = replace(run.options, offline=True, num_processes=None, part_range=None)
        return replace(self._request, config=config, options=options)

    def _note_end(self, rank: int, code: int, status: WorkerStatus | None) -> None:
        if status is not None and status.error is not None:
            self.lost.append(f"rank {rank}: {status.error}")
        elif code < 0:
            self.lost.append(f"rank {rank} was killed by {signal.Signals(-code).name}")
        elif code > 0 or status is None or not status.finished:
            self.lost.append(f"rank {rank} ended with exit code {code}")


class LauncherCrew(Crew):
    """The processes of a launcher, on any number of machines. This one leads and makes parts too."""

    def __init__(self, request: Request, own: ProcessRank, open_encoder: OpenEncoder) -> None:
        super().__init__()
        self._store, self.device = join(own, request.options.device)
        self._own, self._queue = own, WorkQueue(self._store, own.rank)
        self._open_encoder = open_encoder
        self._watch = Watch(self._queue, range(1, own.world_size))

    def make(self, run: Run, plan: Plan, todo: list[int], gone: frozenset[str], counter: Counter) -> list[PartInfo]:
        counter.num_processes = self._own.world_size
        counter.refresh = partial(self._watch.update, counter)
        assignment = assign(run, plan, todo, gone)
        self._queue.publish(assignment)
        parts = map(plan.part, self._queue.claims(assignment))
        try:
            workers = decoding_threads(run.options.workers, self._own, self._store)
            make_parts(run, parts, gone, workers, self._open_encoder, counter)
        except Exception as error:  # the others go on; it is told at the end, with theirs
            self._lose(counter, f"rank 0: {one_line(error)}")
        self._wait_for_the_others(counter)
        return split_by_commit(plan, run.cache, run.fingerprint, todo)[0]

    def announce(self, outcome: dict[str, Any]) -> None:
        """Tell the others and give them a moment to hear it: the store may end with this process."""
        with suppress(WorkerError):
            self._queue.announce(outcome)
            deadline = time.monotonic() + _PARTING_SECONDS
            waiting = set(self._watch.statuses)
            while waiting and time.monotonic() < deadline:
                waiting = {rank for rank in waiting if not self._queue.has_left(rank)}
                time.sleep(0.05)

    def _wait_for_the_others(self, counter: Counter) -> None:
        """Until each has finished, failed, or given no sign of life for a while."""
        waiting = {rank: (-1, time.monotonic()) for rank in range(1, self._own.world_size)}
        while waiting:
            counter.show()
            for rank, (beat, since) in list(waiting.items()):
                status = self._watch.statuses.get(rank)
                if status is not None and status.error is not None:
                    self._lose(counter, f"rank {rank}: {status.error}")
                elif status is not None and status.beat != beat and not status.finished:
                    waiting[rank] = status.beat, time.monotonic()
                    continue
                elif status is None or not status.finished:
                    if time.monotonic() - since < LOST_SECONDS:
                        continue
                    self._lose(counter, f"rank {rank} gave no sign of life for {LOST_SECONDS:.0f} s")
                del waiting[rank]
            time.sleep(_POLL_SECONDS)

    def _lose(self, counter: Counter, ending: str) -> None:
        self.lost.append(ending)
        counter.notify(f"{ending}; the others go on.")


def assign(run: Run, plan: Plan, todo: list[int], gone: frozenset[str]) -> Assignment:
    """What all processes of the run have to do."""
    return Assignment(recipe=run.recipe, parts=plan.largest_first(todo), gone=sorted(gone), found=run.source.found())


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
