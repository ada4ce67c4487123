"""Loaders: a state that counts what was delivered, with worker processes, torchdata and accelerate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from dcae_cache import BucketBatchSampler, LatentDataset, LatentLoader
from dcae_cache.errors import UsageError
from dcae_cache.reader.batch import LatentBatch
from helpers.latents import make_cache

BUCKETS = [{(32, 64): 7, (64, 32): 5}, {(32, 64): 3}, {(64, 32): 9, (64, 64): 1}]
TOTAL = 25


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    return LatentDataset(make_cache(tmp_path_factory.mktemp("cache") / "c", BUCKETS))


def keys(batches: list[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def test_a_batch_is_collated_once(dataset: LatentDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = BucketBatchSampler(dataset, 3)
    ours = list(LatentLoader(dataset, sampler))
    assert sorted(keys(ours)) == sorted(f"k{n}" for n in range(TOTAL))
    for batch in ours:
        assert batch["latents"].shape[0] == len(batch["key"]) == len(batch["height"])
        assert batch["height"].dtype == torch.int64
        assert [f"k{int(n)}" for n in batch["latents"][:, 0, 0, 0]] == batch["key"]
    sampler = BucketBatchSampler(dataset, 3)
    monkeypatch.setattr(LatentBatch, "__iter__", lambda self: pytest.fail("put together sample by sample"))
    plain = list(DataLoader(dataset, batch_sampler=sampler))  # with torch's own collate function
    assert keys(plain) == keys(ours)
    assert set(plain[0]) == set(ours[0])


def test_a_collate_function_of_ones_own_gets_samples(dataset: LatentDataset) -> None:
    def lists(samples: list[dict[str, Any]]) -> list[str]:
        return [sample["key"] for sample in samples]

    loader = DataLoader(dataset, batch_sampler=BucketBatchSampler(dataset, 3), collate_fn=lists)
    assert sorted(key for batch in loader for key in batch) == sorted(f"k{n}" for n in range(TOTAL))


def test_samples_of_one_bucket_can_be_read_one_by_one(dataset: LatentDataset) -> None:
    (batch,) = DataLoader([dataset[0], dataset[1]], batch_size=2)
    assert batch["key"] == ["k0", "k1"]
    assert batch["latents"].shape == (2, 4, 1, 2)
    with pytest.raises(UsageError, match="buckets 32x64, 64x32"):
        dataset.__getitems__([0, 8])


@pytest.mark.parametrize(("before", "after"), [(0, 2), (3, 0)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on machines with fewer cores
def test_the_state_counts_what_was_delivered(dataset: LatentDataset, before: int, after: int) -> None:
    whole = keys(list(LatentLoader(dataset, BucketBatchSampler(dataset, 2))))
    loader = LatentLoader(dataset, BucketBatchSampler(dataset, 2), num_workers=before)
    taken = []
    for batch in loader:
        taken.append(batch)
        if len(taken) == 3:
            break
    resumed = LatentLoader(dataset, BucketBatchSampler(dataset, 2), num_workers=after)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(0)
    assert keys(taken) + keys(list(resumed)) == whole
    assert resumed.state_dict()["epoch"] == 1
    assert keys(taken) + keys(list(loader)) == whole  # and the one that was left goes on, too


def test_an_epoch_that_was_delivered_whole_is_followed_by_the_next(dataset: LatentDataset) -> None:
    loader = LatentLoader(dataset, BucketBatchSampler(dataset, 4))
    for _ in loader:
        state = loader.state_dict()  # the last one is taken before the loop knows that it is over
    resumed = LatentLoader(dataset, BucketBatchSampler(dataset, 4))
    resumed.load_state_dict(state)
    assert list(resumed) == []
    assert keys(list(resumed)) == keys(list(loader))
    loader.set_epoch(0)
    assert loader.state_dict()["done"] == 0


def test_options_that_are_the_samplers_are_refused(dataset: LatentDataset) -> None:
    with pytest.raises(UsageError, match="`shuffle`"):
        LatentLoader(dataset, BucketBatchSampler(dataset, 2), shuffle=True)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchdata_keeps_the_state_right(dataset: LatentDataset, num_workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader(rank: int = 0, world_size: int = 1) -> Any:
        sampler = BucketBatchSampler(dataset, 2, rank_and_world_size=(rank, world_size))
        return stateful(dataset, batch_sampler=sampler, num_workers=num_workers)

    whole = keys(list(loader()))
    first = loader()
    taken = [batch for _, batch in zip(range(4), first, strict=False)]
    state = first.state_dict()
    parts = []
    for rank in range(2):
        resumed = loader(rank, 2)
        resumed.load_state_dict(state)
        parts.append(list(resumed))
    others = [batch for step in zip(*parts, strict=True) for batch in step]
    assert (keys(taken) + keys(others))[: len(whole)] == whole


def test_accelerate_shares_nothing_out_twice(dataset: LatentDataset) -> None:
    loader = LatentLoader(dataset, BucketBatchSampler(dataset, 2, rank_and_world_size=(1, 2)))
    accelerator = Accelerator(cpu=True)
    assert accelerator.prepare(accelerator.prepare(loader)) is loader
    plain = DataLoader(dataset, batch_sampler=BucketBatchSampler(dataset, 2, rank_and_world_size=(1, 2)))
    with pytest.raises(UsageError, match="Use LatentLoader"):
        next(iter(prepare_data_loader(plain, num_processes=2, process_index=1)))
    alone = prepare_data_loader(plain, num_processes=1, process_index=0)
    assert len(list(alone)) == len(loader)


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from dcae_cache import BucketBatchSampler, LatentDataset, LatentLoader
dataset = LatentDataset(sys.argv[1])
loader = LatentLoader(dataset, BucketBatchSampler(dataset, 8), num_workers=4)
print(len({key for batch in loader for key in batch["key"]}))
"""


def test_more_parts_than_descriptors(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "many", [{(32, 32): 2}] * 300)
    done = subprocess.run([sys.executable, "-c", MANY, str(cache)], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "600", done.stderr[-2000:]
