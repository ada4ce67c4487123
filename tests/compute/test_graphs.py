"""Work is recorded when its shape comes up again, replayed from then on, and never the worse for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dcae_cache.compute import graphs
from dcae_cache.compute.graphs import Graphs, Results, graphs_of
from helpers.devices import ReplayedWork

CPU = torch.device("cpu")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Doubling:
    """Work that counts how often it is done by itself; ``most``: of how many numbers memory allows."""

    def __init__(self, most: int = 99) -> None:
        self.most, self.calls = most, 0

    def __call__(self, given: Tensor) -> Results:
        self.calls += 1
        if given.numel() > self.most:
            raise OUT_OF_MEMORY
        return given * 2, None


def opened(record: Callable[..., object] = ReplayedWork) -> tuple[Graphs, list[str]]:
    said: list[str] = []
    return Graphs(CPU, record, said.append), said  # type: ignore[arg-type]  # stand-ins


def numbers(count: int, first: float = 1.0) -> Tensor:
    """A batch of one-pixel images."""
    return (torch.arange(count, dtype=torch.float32) + first)[:, None, None, None]


def run(found: Graphs, work: Doubling, given: Tensor) -> Tensor:
    return found.run(work, given)[0].clone()


def test_a_shape_is_recorded_when_it_comes_a_second_time() -> None:
    recorded: list[int] = []

    def record(work: Doubling, given: Tensor) -> ReplayedWork:
        recorded.append(len(given))
        return ReplayedWork(work, given)

    found, said = opened(record)
    for turn, count in enumerate([3, 4, 3, 3, 4, 3]):
        assert torch.equal(run(found, Doubling(), numbers(count, turn)), numbers(count, turn) * 2)
    assert recorded == [3, 4]
    assert said == []


def test_no_more_than_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    recorded: list[int] = []
    found, _ = opened(lambda work, given: recorded.append(len(given)) or ReplayedWork(work, given))
    for count in (1, 2, 3) * 3:
        run(found, Doubling(), numbers(count))
    assert recorded == [1, 2]


class Wrong(ReplayedWork):
    """Replays give other numbers, as work does that reads memory which was given back meanwhile."""

    def replay(self, given: Tensor) -> Results:
        found, other = super().replay(given)
        return found + 1e-3, other


def refused(work: Doubling, given: Tensor) -> ReplayedWork:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might ...")


@pytest.mark.parametrize(
    ("record", "reason"),
    [(Wrong, "a recording gave other numbers"), (refused, "CUDA error: operation not permitted when stream is captu")],
)
def test_a_recording_that_fails_or_differs_is_not_used_and_that_is_said_once(
    record: Callable[..., object], reason: str
) -> None:
    found, said = opened(record)
    for turn, count in enumerate([3, 3, 3, 4, 4, 4]):
        assert torch.equal(run(found, Doubling(), numbers(count, turn)), numbers(count, turn) * 2)
    (line,) = said
    assert line.startswith(f"CUDA graphs are not used ({reason}")
    assert "\n" not in line


def test_neither_large_batches_nor_other_work_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_PIXELS", 4)
    found, _ = opened(lambda work, given: pytest.fail("recorded"))
    for turn in range(3):
        assert torch.equal(run(found, Doubling(), numbers(5, turn)), numbers(5, turn) * 2)
        assert torch.equal(found.run(Doubling(), numbers(2, turn), may_record=False)[0], numbers(2, turn) * 2)


def test_results_that_are_not_finite_are_the_same_bytes_too() -> None:
    found, said = opened()
    bad = numbers(3)
    bad[:2, 0, 0, 0] = torch.tensor([float("nan"), float("inf")])
    for _ in range(3):
        assert torch.equal(run(found, Doubling(), bad).isnan(), bad.isnan())
    assert said == []


@pytest.mark.parametrize("kind", ["small", "large", "other work"])
def test_recordings_go_before_a_batch_is_halved(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold memory: without them the same work may fit."""
    monkeypatch.setattr(graphs, "MOST_PIXELS", 4 if kind == "large" else 99)
    found, said = opened()
    small, large = Doubling(), Doubling(most=0)
    for _ in range(3):
        run(found, small, numbers(2))

    def clear_makes_room() -> None:
        large.most = 99
        real()

    real = found.clear
    found.clear = clear_makes_room  # type: ignore[method-assign]
    result, _ = found.run(large, numbers(9), may_record=kind != "other work")
    assert torch.equal(result, numbers(9) * 2)
    assert large.calls == 2
    before = small.calls
    run(found, small, numbers(2))
    assert small.calls == before + 1, "nothing is recorded any more"
    assert said == []


def test_work_that_does_not_fit_without_recordings_raises_at_once() -> None:
    found, _ = opened()
    work = Doubling(most=0)
    with pytest.raises(torch.OutOfMemoryError):
        found.run(work, numbers(2))
    assert work.calls == 1


def test_memory_that_is_short_for_a_recording_is_nothing_to_speak_of() -> None:
    def record(work: Doubling, given: Tensor) -> ReplayedWork:
        raise OUT_OF_MEMORY

    found, said = opened(record)
    for turn in range(4):
        assert torch.equal(run(found, Doubling(), numbers(2, turn)), numbers(2, turn) * 2)
    assert said == []


def test_there_are_none_but_on_cuda() -> None:
    assert graphs_of(CPU, lambda text: None) is None
    assert graphs_of(torch.device("mps"), lambda text: None) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_a_replay_gives_the_same_bytes() -> None:
    device, said = torch.device("cuda"), list[str]()
    found = graphs_of(device, said.append)
    assert found is not None
    weight = torch.randn(64, 64, device=device, dtype=torch.float16)

    def work(given: Tensor) -> Results:
        return (given @ weight).relu(), None

    for _ in range(4):
        given = torch.randn(1, 1, 32, 64, device=device, dtype=torch.float16)
        assert torch.equal(found.run(work, given)[0].cpu(), work(given)[0].cpu())
    assert len(found._recordings) == 1
    assert said == []
