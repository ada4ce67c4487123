"""Work on lanes: each on one core of torch's, errors told, nothing left behind."""

from __future__ import annotations

from threading import get_ident

import pytest
import torch

from dcae_cache.compute.lanes import Lanes


def test_work_on_a_cpu_runs_on_threads_with_one_core_each() -> None:
    before = torch.get_num_threads()
    with Lanes(torch.device("cpu"), 2) as lanes:
        started = [lanes.start(lambda: (torch.get_num_threads(), get_ident())) for _ in range(4)]
        found = [future.result() for future in started]
    assert {threads for threads, _ in found} == {1}
    assert get_ident() not in {thread for _, thread in found}
    assert torch.get_num_threads() == before


def test_work_elsewhere_is_done_at_once_by_the_caller() -> None:
    with Lanes(torch.device("meta"), 4) as lanes:
        future = lanes.start(get_ident)
        assert future.done()
        assert future.result() == get_ident()


def test_an_error_reaches_whoever_waits() -> None:
    with Lanes(torch.device("cpu"), 1) as lanes, pytest.raises(ZeroDivisionError):
        lanes.start(lambda: 1 // 0).result()
