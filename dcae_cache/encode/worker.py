"""A process that makes parts of a run which another process leads: one that crew.py has started on this machine
(worker_process.py), or, under a launcher, every process but the first.

It takes part after part from the queue until none is left. Knows nothing of indexes or summaries.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import torch

from ..cache.locks import locked_as_worker
from ..cache.plan import Plan, load_plan
from ..errors import CacheError, DCAECacheError, LeaderError
from .core_shares import decoding_threads
from .distributed import ProcessRank, join
from .part_encoder import OpenEncoder, make_parts
from .progress import Counter, Listener
from .run import Request, join_run
from .work_queue import StatusReporter, WorkerStatus, WorkQueue


def work_for_leader(
    request: Request, queue: WorkQueue, device: torch.device, workers: int, open_encoder: OpenEncoder
) -> None:
    """Make parts for the leader of the run, with so many decoding ``workers``. Raises whatever went wrong here, after
    the leader was told; LeaderError where the leader failed."""
    counter = Counter(Listener(notify=queue.note))
    with StatusReporter(queue, WorkerStatus(device=str(device), tally=counter.own)):
        assignment = queue.assignment()
        if assignment.parts:
            with locked_as_worker(request.out):
                run = join_run(request, device, assignment.recipe, assignment.found)
                parts = map(_plan(request).part, queue.claims(assignment))
                make_parts(run, parts, frozenset(assignment.gone), workers, open_encoder, counter)


def _plan(request: Request) -> Plan:
    """The plan that the leader has written."""
    plan = load_plan(request.out)
    if plan is None:
        raise CacheError(f"{request.out} has no plan here, where the run is led from it has. Give one shared folder.")
    return plan


def work_until_the_end(request: Request, own: ProcessRank, open_encoder: OpenEncoder) -> dict[str, Any]:
    """``work_for_leader``, then wait for what came of the whole run: the leader's summary.

    A launcher ends all processes when one fails, so one that failed waits too: the others go on. Raises LeaderError
    when the run failed, here or elsewhere; the leader says why.
    """
    store, device = join(own, request.options.device)
    queue = WorkQueue(store, own.rank)
    with suppress(DCAECacheError):  # the leader was told, or is gone, which shows below
        workers = decoding_threads(request.options.workers, own, store)
        work_for_leader(request, queue, device, workers, open_encoder)
    while (outcome := queue.outcome()) is None:
        time.sleep(0.2)
    queue.leave()
    if outcome.get("error") is not None:
        raise LeaderError(outcome["error"])
    summary: dict[str, Any] = outcome["summary"]
    return summary
