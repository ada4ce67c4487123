"""Reading a cache for training: right samples, one bucket a batch, deterministic, resumable, fair to all ranks."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dcae_cache import BucketBatchSampler, LatentDataset
from dcae_cache.errors import CacheError, UsageError


class Shape:
    """Stands in for a dataset where only the buckets matter."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def buckets(self) -> dict[tuple[int, int], list[range]]:
        found, first = {}, 0
        for number, size in enumerate(self.sizes):
            found[32 * (number + 1), 32] = [range(first, first + size // 2), range(first + size // 2, first + size)]
            first += size
        return found


def test_items_columns_and_raw_latents(cache: Path) -> None:
    scaled, raw = LatentDataset(cache), LatentDataset(cache, raw=True, columns=("source",))
    sample = scaled[3]
    assert sample["latents"].dtype == torch.float32
    assert sample["latents"].shape[0] == 32
    assert torch.allclose(raw[3]["latents"] * scaled.scaling_factor, sample["latents"])
    assert raw[3]["source"] == sample["key"] + ".jpg"
    assert scaled[-1]["key"] == scaled[len(scaled) - 1]["key"]
    with pytest.raises(IndexError):
        scaled[len(scaled)]


def test_changing_an_item_leaves_the_cache_alone(cache: Path) -> None:
    dataset = LatentDataset(cache)
    before = dataset[0]["latents"].clone()
    dataset[0]["latents"].zero_()
    assert torch.equal(dataset[0]["latents"], before)


def test_batches_through_a_loader_with_processes(cache: Path) -> None:
    dataset = LatentDataset(cache)
    sampler = BucketBatchSampler(dataset, batch_size=3)
    seen = []
    for batch in DataLoader(dataset, batch_sampler=sampler, num_workers=2):
        assert batch["latents"].shape[0] == len(batch["key"]) <= 3
        seen += batch["key"]
    assert sorted(seen) == sorted(dataset[i]["key"] for i in range(len(dataset)))


def test_a_pickled_dataset_reads_the_same(cache: Path) -> None:
    dataset = LatentDataset(cache)
    first = dataset[0]["latents"]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0]["latents"], first)


def test_what_is_not_there_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is not a finished cache"):
        LatentDataset(tmp_path)
    with pytest.raises(CacheError, match="encode --flip"):
        LatentDataset(cache, flipped=True)
    with pytest.raises(UsageError, match=r"No column 'nonsense'.*caption"):
        _ = LatentDataset(cache, columns=("nonsense",))[0]


sizes = st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=5)


@given(sizes, st.integers(1, 8), st.integers(1, 4), st.booleans(), st.integers(0, 5))
def test_ranks_share_an_epoch(sizes: list[int], batch_size: int, world_size: int, drop_last: bool, epoch: int) -> None:
    shape = Shape(sizes)
    options = {"seed": 3, "drop_last": drop_last}
    ranks = []
    for rank in range(world_size):
        sampler = BucketBatchSampler(shape, batch_size, rank_and_world_size=(rank, world_size), **options)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    alone = BucketBatchSampler(shape, batch_size, **options)
    alone.set_epoch(epoch)
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    everything = list(alone)
    assert together == everything[: len(together)]
    assert len(everything) - len(together) < world_size
    counts = Counter(number for batch in everything for number in batch)
    assert set(counts.values()) <= {1}
    if not drop_last:
        assert len(counts) == sum(sizes)
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    for batch in everything:
        homes = {next(i for i in range(len(sizes)) if edges[i] <= number < edges[i + 1]) for number in batch}
        assert len(homes) == 1
        assert len(batch) == batch_size or (not drop_last and len(batch) < batch_size)


@given(sizes, st.integers(1, 5), st.integers(0, 30))
def test_resuming_goes_on_behind_the_last_batch(sizes: list[int], batch_size: int, stop: int) -> None:
    whole = BucketBatchSampler(Shape(sizes), batch_size)
    batches = list(whole) + list(whole)  # two epochs
    stop = min(stop, len(batches) // 2)
    first = BucketBatchSampler(Shape(sizes), batch_size)
    iterator = iter(first)
    taken = [next(iterator) for _ in range(stop)]
    second = BucketBatchSampler(Shape(sizes), batch_size)
    second.load_state_dict(first.state_dict())
    assert taken + list(second) + list(second) == batches


def test_a_state_of_another_sampler_is_refused() -> None:
    state = BucketBatchSampler(Shape([5]), 2, seed=1).state_dict()
    with pytest.raises(UsageError, match="seed 1"):
        BucketBatchSampler(Shape([5]), 2, seed=2).load_state_dict(state)
    with pytest.raises(UsageError, match="rank 2"):
        BucketBatchSampler(Shape([5]), 2, rank_and_world_size=(2, 2))
