"""The processes of a machine tell each other what cores they have."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from dcae_cache.compute.cores import CoreBudget
from dcae_cache.encode import core_shares
from dcae_cache.encode.distributed import ProcessRank


def ranks(count: int) -> list[ProcessRank]:
    return [
        ProcessRank(rank=n, world_size=count, local_rank=n, local_world_size=count, host="here", port=1)
        for n in range(count)
    ]


def test_processes_with_cores_of_their_own_don_t_divide_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun --cpus-per-task=12, 8 tasks: 12 decoding threads each. All share the machine under torchrun: 12 of 96."""
    store = HashStore()
    budgets = [CoreBudget(frozenset(range(12 * n, 12 * n + 12))) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        exchanged = list(pool.map(core_shares._exchange, budgets, ranks(8), [store] * 8))
    assert all(seen == budgets for seen in exchanged)
    monkeypatch.setattr(core_shares, "own_budget", lambda: budgets[3])
    assert core_shares.decoding_threads(None, ranks(8)[3], store, {}) == 12
    monkeypatch.setattr(core_shares, "own_budget", lambda: CoreBudget(frozenset(range(96))))
    assert core_shares.decoding_threads(None, ranks(8)[3], HashStore(), {"DCAE_CACHE_WORKER": "1"}) == 12


def test_a_process_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_shares, "_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(core_shares, "own_budget", lambda: CoreBudget(frozenset(range(8))))
    assert core_shares.decoding_threads(None, ranks(2)[0], HashStore(), {}) == 4


def test_a_number_the_user_names_is_for_the_machine() -> None:
    assert [core_shares.decoding_threads(5, own, HashStore(), {}) for own in ranks(2)] == [3, 2]
