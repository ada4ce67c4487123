"""What each process of a run has of its machine's cores: they tell each other through the store.

Only the launcher's processes know how they were bound: under srun each has cores of its own, under torchrun they share
all. Knows nothing of what the cores are used for.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping

from torch.distributed import DistError, Store

from ..compute.cores import CoreBudget, core_shares, own_budget
from ..errors import LeaderError
from .distributed import ProcessRank, was_started_here

_WAIT_SECONDS = 20.0  # for the other processes of this machine; who hasn't come by then counts as bound alike


def decoding_threads(
    wanted: int | None, own: ProcessRank, store: Store, environ: Mapping[str, str] = os.environ
) -> int:
    """How many decoding threads this process runs: its share of ``wanted``, which is for its machine, or one for each
    core that is its own. Raises LeaderError where the store is gone."""
    if wanted is not None:
        return own.share_of(wanted)
    if was_started_here(environ):  # by a process of ours: all have what that one had
        budgets = [own_budget()] * own.local_world_size
    else:
        budgets = _exchange(own_budget(), own, store)
    return core_shares(budgets)[own.local_rank]


def _exchange(budget: CoreBudget, own: ProcessRank, store: Store) -> list[CoreBudget]:
    """The budgets of all processes of this machine, by local rank."""
    names = [f"cores/{socket.gethostname()}/{rank}" for rank in range(own.local_world_size)]
    try:
        store.set(names[own.local_rank], json.dumps([sorted(budget.cores), budget.quota, budget.group]))
        deadline = time.monotonic() + _WAIT_SECONDS
        while not store.check(names) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [_read(store.get(name)) if store.check([name]) else budget for name in names]
    except (DistError, RuntimeError) as error:
        raise LeaderError("The process that leads the run is gone.") from error


def _read(data: bytes) -> CoreBudget:
    cores, quota, group = json.loads(data)
    return CoreBudget(frozenset(cores), quota, group)
