"""Work in as few pieces as memory allows."""

from __future__ import annotations

import weakref
from itertools import chain

import pytest
import torch

from dcae_cache.compute.pieces import Pieces, few_sizes

CPU = torch.device("cpu")


class Work:
    """Runs out of memory above ``most`` items; notes the pieces it was given."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        self.most, self.error = most, error or torch.OutOfMemoryError("CUDA out of memory")
        self.given: list[tuple[int, int, int]] = []

    def __call__(self, rows: slice, size: int) -> list[int]:
        self.given.append((rows.start, rows.stop, size))
        if size > self.most:
            raise self.error
        return list(range(rows.start, rows.stop))


def flat(pieces: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(pieces))


def no_misfit(rows: slice, reason: str) -> list[int]:
    raise AssertionError("no item is too large")


def test_what_fits_goes_in_one_piece() -> None:
    work = Work(8)
    assert Pieces(CPU).run(8, "images", work, no_misfit) == [list(range(8))]
    assert work.given == [(0, 8, 8)]


def test_half_as_many_go_each_time_and_that_is_kept() -> None:
    work, heard = Work(2), []
    pieces = Pieces(CPU, halved=lambda kind, count: heard.append((kind, count)))
    assert flat(pieces.run(9, "large", work, no_misfit)) == list(range(9))
    assert work.given[:4] == [(0, 9, 9), (0, 4, 4), (0, 2, 2), (2, 4, 2)]
    assert heard == [("large", 4), ("large", 2)]
    work.given.clear()
    pieces.run(5, "large", work, no_misfit)
    assert [size for _, _, size in work.given] == [2, 2, 1]
    work.given.clear()
    pieces.run(2, "small", Work(9), no_misfit)
    assert pieces.run(4, "small", Work(9), no_misfit) == [[0, 1, 2, 3]]  # another kind is not held back


def test_pieces_that_are_done_are_not_done_again() -> None:
    """Work that adds to a sum would add twice."""
    added: list[int] = []

    def add(rows: slice, size: int) -> None:
        if rows.start >= 4 and size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        added.extend(range(rows.start, rows.stop))

    pieces = Pieces(CPU, sizes=lambda kind, wanted, most: min(wanted, 4, most or 4))
    pieces.run(8, "images", add, lambda rows, reason: None)
    assert added == list(range(8))


def test_a_single_item_that_does_not_fit_is_stood_in_for_and_the_rest_goes_on() -> None:
    def work(rows: slice, size: int) -> list[int]:
        if rows.start <= 2 < rows.stop:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")
        return list(range(rows.start, rows.stop))

    def misfit(rows: slice, reason: str) -> list[int]:
        assert "MPS backend" in reason
        return [-rows.start]

    assert flat(Pieces(CPU).run(5, "images", work, misfit)) == [0, 1, -2, 3, 4]


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Pieces(CPU).run(4, "images", Work(0, RuntimeError("CUDA error: an illegal memory access")), no_misfit)


def test_nothing_of_a_piece_that_failed_is_kept_while_the_next_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    made: list[weakref.ref[torch.Tensor]] = []

    def work(rows: slice, size: int) -> None:
        activations = torch.empty(10)
        made.append(weakref.ref(activations))
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    count = lambda device: alive.append(sum(tensor() is not None for tensor in made))  # noqa: E731
    monkeypatch.setattr("dcae_cache.compute.pieces.release_cached", count)
    Pieces(CPU).run(4, "images", work, lambda rows, reason: None)
    assert alive == [0, 0]


@pytest.mark.parametrize(
    ("wanted", "most", "size"),
    [
        (1, 24, 1),
        (2, 24, 2),
        (3, 24, 4),
        (5, 24, 8),
        (13, 24, 16),
        (17, 24, 24),
        (24, 24, 24),
        (30, 24, 24),
        (5, None, 8),
    ],
)
def test_few_sizes(wanted: int, most: int | None, size: int) -> None:
    assert few_sizes(wanted, most) == size


def test_a_bucket_s_batches_have_a_handful_of_sizes() -> None:
    assert sorted({few_sizes(wanted, 24) for wanted in range(1, 25)}) == [1, 2, 4, 8, 16, 24]
