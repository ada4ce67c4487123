"""A process that makes parts of a run which another process leads: one that crew.py has started on this machine
(cli/worker.py), or, under a launcher, every process but the first.

It takes part after part from the queue until none is left. Knows nothing of indexes or summaries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from ..cache.locks import locked_as_worker
from ..cache.plan import PlanFile
from ..compute.cores import default_workers
from ..errors import DCAECacheError, LeaderError
from ..records import Part
from .distributed import Place, join
from .part_encoder import encode_parts
from .reuse import stored_latents
from .run import Request, Run, join_run
from .work_queue import Job, Report, Reporter, WorkQueue


def make_parts(run: Run, queue: WorkQueue, job: Job, place: Place, find: Callable[[int], Part]) -> None:
    """Make the parts that this process can get hold of, with its share of the machine's cores."""
    run.streams = torch.get_num_threads()  # the launcher's OMP_NUM_THREADS: for this process alone
    run.options = replace(run.options, workers=place.share_of(run.options.workers or default_workers()))
    encode_parts(run, map(find, queue.claims(job)), stored_latents(run, frozenset(job.gone)))


def follow(request: Request, place: Place, queue: WorkQueue, device: torch.device) -> None:
    """Make parts for the leader of the run. Raises whatever went wrong here, after the leader was told; LeaderError
    where the leader failed."""
    report = Report(device=str(device))
    with Reporter(queue, report):
        job = queue.job()
        if job.parts:
            with locked_as_worker(request.out):
                run = join_run(request, device, job.recipe, job.found)
                run.notify, report.tally = queue.note, run.tally
                make_parts(run, queue, job, place, PlanFile(request.out).part)


def follow_to_the_end(request: Request, place: Place) -> dict[str, Any]:
    """``follow``, then wait for what came of the whole run: the leader's summary.

    A launcher ends all processes when one fails, so one that failed waits too: the others go on. Raises LeaderError
    when the run failed, here or elsewhere; the leader says why.
    """
    store, device = join(place, request.options.device)
    queue = WorkQueue(store, place.rank)
    with suppress(DCAECacheError):  # the leader was told, or is gone, which shows below
        follow(request, place, queue, device)
    while (outcome := queue.outcome()) is None:
        time.sleep(0.2)
    queue.leave()
    if outcome.get("error") is not None:
        raise LeaderError(outcome["error"])
    summary: dict[str, Any] = outcome["summary"]
    return summary
