"""Reading a cache for training: the right samples, one by one and in batches."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from dcae_cache import BucketBatchSampler, LatentDataset
from dcae_cache.cache.finalize import finalize_cache
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.errors import CacheError, UsageError
from helpers.images import tiny_config


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


def test_a_cache_that_lacks_parts_is_refused_unless_allowed(photos: Path, tmp_path: Path) -> None:
    """Training on a part of the data without a word is worse than an error."""
    options = RunOptions(device="cpu", part_size=8, part_range=(0, 2))
    encode_dataset(photos, tmp_path / "out", tiny_config(), options)
    finalize_cache(tmp_path / "out")
    with pytest.raises(CacheError, match=r"is unfinished: parts .* missing\. Run .* again .* `allow_incomplete`=True"):
        LatentDataset(tmp_path / "out")
    dataset = LatentDataset(tmp_path / "out", allow_incomplete=True)
    assert len(dataset) == 12, "parts 0 and 2 of three"
    encode_dataset(photos, tmp_path / "out", tiny_config(), RunOptions(device="cpu", part_size=8))
    assert len(LatentDataset(tmp_path / "out")) == 20


def test_what_is_not_there_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is not a finished cache"):
        LatentDataset(tmp_path)
    with pytest.raises(CacheError, match="encode --flip"):
        LatentDataset(cache, flipped=True)
    with pytest.raises(UsageError, match=r"No column 'nonsense'.*caption"):
        _ = LatentDataset(cache, columns=("nonsense",))[0]
