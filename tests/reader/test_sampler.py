"""The order of batches: one bucket each, every sample once over all ranks, and resumable by any number of them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_cache import BucketBatchSampler
from dcae_cache.errors import UsageError
from dcae_cache.reader.permutation import Permutation
from dcae_cache.reader.ranks import rank_and_world_size_here
from dcae_cache.reader.sampler import SamplerOptions, TokenBudget


class Shape:
    """Stands in for a dataset where only the buckets matter: each is in three parts."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def buckets(self) -> dict[tuple[int, int], list[range]]:
        found: dict[tuple[int, int], list[range]] = {}
        first = 0
        for number, size in enumerate(self.sizes):
            edges = [first + size * i // 3 for i in range(4)]
            found[32 * (number + 1), 32] = [range(a, b) for a, b in pairwise(edges)]
            first += size
        return found

    def bucket_of(self, number: int) -> int:
        return int(np.searchsorted(np.cumsum(self.sizes), number, side="right"))


def ranks(shape: Shape, batch_size: int, world_size: int, state: dict[str, Any] | None = None, **more: Any) -> list:
    samplers = [
        BucketBatchSampler(shape, batch_size, rank_and_world_size=(rank, world_size), **more)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        if state is not None:
            sampler.load_state_dict(state)
    return samplers


def dealt(taken: list[list[list[int]]]) -> list[list[int]]:
    """The batches of all ranks in the order of the epoch: step by step, in a step by rank."""
    steps = max(map(len, taken))
    return [batches[step] for step in range(steps) for batches in taken if step < len(batches)]


few = settings(max_examples=60)
sizes = st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=5)
windows = st.sampled_from([None, 1, 2])


@few
@given(sizes, st.integers(1, 8), st.integers(1, 8), st.booleans(), windows, st.booleans(), st.integers(0, 5))
def test_every_sample_once_over_all_ranks(
    sizes: list[int], batch_size: int, world_size: int, drop_last: bool, window: int, shuffle: bool, epoch: int
) -> None:
    shape = Shape(sizes)
    options = SamplerOptions(uneven="ragged", window=window)
    samplers = ranks(shape, batch_size, world_size, options=options, seed=3, drop_last=drop_last, shuffle=shuffle)
    taken = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        dropped = sampler.num_dropped
        assert sampler.num_repeated == 0
        taken.append(list(sampler))
        sampler.set_epoch(epoch)
        assert len(taken[-1]) == len(sampler)
    everything = dealt(taken)
    counts = Counter(chain(*everything))
    assert set(counts.values()) <= {1}
    assert len(counts) + dropped == sum(sizes)
    assert dropped == (sum(size % batch_size for size in sizes) if drop_last else 0)
    for batch in everything:
        assert len({shape.bucket_of(number) for number in batch}) == 1
        assert len(batch) == batch_size or (not drop_last and len(batch) < batch_size)
    alone = BucketBatchSampler(shape, batch_size, options=options, seed=3, drop_last=drop_last, shuffle=shuffle)
    alone.set_epoch(epoch)
    assert list(alone) == everything  # the order doesn't depend on the number of ranks


@few
@given(sizes, st.integers(1, 8), st.integers(1, 8), st.sampled_from(["repeat", "drop"]), st.booleans())
def test_equal_steps_say_what_they_cost(
    sizes: list[int], batch_size: int, world_size: int, uneven: Any, same_bucket: bool
) -> None:
    shape = Shape(sizes)
    samplers = ranks(shape, batch_size, world_size, options=SamplerOptions(uneven=uneven, same_bucket=same_bucket))
    dropped, repeated = samplers[0].num_dropped, samplers[-1].num_repeated
    taken = [list(sampler) for sampler in samplers]
    assert len({len(batches) for batches in taken}) == 1
    counts = Counter(chain(*dealt(taken)))
    assert sum(sizes) - len(counts) == dropped
    assert counts.total() - len(counts) == repeated
    assert (dropped if uneven == "repeat" else repeated) == 0
    if same_bucket:
        for step in zip(*taken, strict=True):
            assert len({shape.bucket_of(batch[0]) for batch in step}) == 1


@few
@given(sizes, st.integers(1, 5), st.integers(1, 8), st.integers(1, 8), st.integers(0, 9), st.booleans(), windows)
def test_other_ranks_go_on_with_exactly_the_missing_samples(
    sizes: list[int], batch_size: int, before: int, after: int, steps: int, same_bucket: bool, window: int
) -> None:
    """Three times: some ranks begin, other ranks take a step, the first go on to the end."""
    shape = Shape(sizes)
    options = SamplerOptions(same_bucket=same_bucket, window=window)
    counts: Counter[int] = Counter()
    state = None
    for world_size, stop in ((before, steps), (after, 1), (before, None)):
        samplers = ranks(shape, batch_size, world_size, state, options=options)
        iterators = [iter(sampler) for sampler in samplers]
        taken = [
            list(iterator) if stop is None else list(zip(range(stop), iterator, strict=False))
            for iterator in iterators
        ]
        batches = dealt(taken) if stop is None else [batch for _, batch in dealt(taken)]
        counts.update(chain(*batches))
        if stop is None or samplers[0].epoch:
            break
        states = [json.dumps(sampler.state_dict()) for sampler in samplers]
        assert len(set(states)) == 1  # any rank's will do
        state = json.loads(states[0])
    assert len(counts) == sum(sizes)
    assert counts.total() - len(counts) <= batch_size * max(before, after) * (3 * len(sizes) if same_bucket else 1)


@few
@given(sizes, st.integers(1, 5), st.integers(0, 30), windows)
def test_resuming_goes_on_behind_the_last_batch(sizes: list[int], batch_size: int, stop: int, window: int) -> None:
    options = SamplerOptions(window=window)
    whole = BucketBatchSampler(Shape(sizes), batch_size, options=options)
    batches = list(whole) + list(whole)  # two epochs
    stop = min(stop, len(batches) // 2)
    first = BucketBatchSampler(Shape(sizes), batch_size, options=options)
    iterator = iter(first)
    taken = [next(iterator) for _ in range(stop)]
    second = BucketBatchSampler(Shape(sizes), batch_size, options=options)
    second.load_state_dict(first.state_dict())
    second.set_epoch(0)  # as training loops do: the epoch that is under way goes on
    assert taken + list(second) + list(second) == batches


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    shape = Shape([64])
    sampler = BucketBatchSampler(shape, 8)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert list(BucketBatchSampler(shape, 8, seed=1)) not in (first, second)
    assert list(BucketBatchSampler(shape, 8, shuffle=False)) == [list(range(i, i + 8)) for i in range(0, 64, 8)]


def test_windows_keep_few_parts_open() -> None:
    class Parts:
        def buckets(self) -> dict[tuple[int, int], list[range]]:
            return {(32, 32): [range(10 * i, 10 * i + 10) for i in range(100)]}

    batches = list(BucketBatchSampler(Parts(), 10, options=SamplerOptions(window=4)))
    places = [[number // 10 for number in batch] for batch in batches]
    assert all(len(set(chain(*places[i : i + 4]))) == 4 for i in range(0, 100, 4))
    assert sorted(chain(*batches)) == list(range(1000))
    assert len({tuple(sorted(set(parts))) for parts in places}) > 25  # mixed within a window, not part by part


def test_a_token_budget_gives_each_bucket_its_batch_size() -> None:
    sampler = BucketBatchSampler(Shape([40, 40, 40]), TokenBudget(12, pixels=32, largest=8), drop_last=True)
    found = {32 * (1 + Shape([40, 40, 40]).bucket_of(batch[0])): len(batch) for batch in sampler}
    assert found == {32: 8, 64: 6, 96: 4}
    assert TokenBudget(1, pixels=32).batch_size((512, 512)) == 1


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"seed": 2}, "seed 0; this sampler has seed 2"),
        ({"batch_size": 3}, "batch_size 2"),
        ({"shuffle": False}, "shuffle True"),
        ({"drop_last": True}, "drop_last False"),
        ({"options": SamplerOptions(window=2)}, "window None"),
        ({"options": SamplerOptions(same_bucket=True)}, "same_bucket False"),
        ({"dataset": Shape([5, 6])}, "the cache's samples"),
    ],
)
def test_a_state_of_another_order_is_refused(other: dict[str, Any], expected: str) -> None:
    state = BucketBatchSampler(Shape([5]), 2).state_dict()
    settings = {"dataset": Shape([5]), "batch_size": 2} | other
    with pytest.raises(UsageError, match=expected):
        BucketBatchSampler(**settings).load_state_dict(state)
    with pytest.raises(UsageError, match="version None"):
        BucketBatchSampler(Shape([5]), 2).load_state_dict({"epoch": 0, "done": 1})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 2, "rank_and_world_size": (2, 2)}, "rank 2"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        BucketBatchSampler(Shape([5]), **settings)
    with pytest.raises(UsageError, match="`uneven`"):
        SamplerOptions(uneven="no")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="same_bucket"):
        SamplerOptions(uneven="ragged", same_bucket=True)


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rank_and_world_size_here() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sampler = BucketBatchSampler(Shape([5]), 1)
    assert (sampler.rank, sampler.world_size) == (1, 3)


@few
@given(st.integers(1, 3000), st.integers(0, 3))
def test_a_permutation_has_every_place_once(size: int, key: int) -> None:
    assert sorted(Permutation(size, key)(np.arange(size)).tolist()) == list(range(size))


def test_a_permutation_looks_random() -> None:
    places = Permutation(10_000, "a key")(np.arange(10_000))
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), places)[0, 1]) < 0.05
    assert np.bincount(places[:1000] // 1000).max() < 150
    assert (places == np.arange(10_000)).sum() < 10
