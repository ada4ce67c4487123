"""Some samples, or some more often than others; several caches at once."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_cache import BucketBatchSampler, LatentDataset, LatentLoader, MixedDataset, Selection
from dcae_cache.errors import UsageError
from dcae_cache.reader.sampler import SamplerOptions
from dcae_cache.reader.selection import times_this_epoch
from helpers.latents import make_cache

PARTS = [{(32, 64): 20, (64, 32): 20}, {(32, 64): 30}, {(64, 32): 30}]


def describe(number: int) -> dict[str, Any]:
    return {"label": str(number % 5), "caption": "x" * (number % 7) or None, "attributes": f'{{"score": {number}}}'}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    return LatentDataset(make_cache(tmp_path_factory.mktemp("caches") / "c", PARTS, describe=describe))


def seen(sampler: BucketBatchSampler) -> Counter[int]:
    return Counter(chain(*sampler))


def test_a_condition_chooses(dataset: LatentDataset) -> None:
    chosen = Selection(dataset).where("label == 3 and aspect > 1").where(pc.field("row") < 10)
    for options in (SamplerOptions(), SamplerOptions(window=1)):
        sampler = BucketBatchSampler(chosen, 4, options=options)
        for batch in LatentLoader(dataset, sampler):
            assert set(batch["label"]) == {"3"}
            assert (batch["width"] > batch["height"]).all()
        assert sampler.epoch == 1
        assert sorted(seen(sampler)) == chosen.numbers.tolist()
    assert len(Selection(dataset).where("attributes.score < 10")) == 10


def test_a_split_stays_as_the_cache_grows(dataset: LatentDataset, tmp_path: Path) -> None:
    larger = LatentDataset(make_cache(tmp_path / "larger", [*PARTS, {(32, 64): 50}], describe=describe))
    sides = []
    for each in (dataset, larger):
        train, test = (Selection(each).split(*edges).numbers.tolist() for edges in ((0, 0.8), (0.8, 1)))
        assert sorted(train + test) == list(range(len(each)))
        sides.append(train)
    assert 60 < len(sides[0]) < 95
    assert [number for number in sides[1] if number < len(dataset)] == sides[0]


@settings(max_examples=40)
@given(st.lists(st.floats(0, 4), min_size=1, max_size=40), st.integers(0, 100))
def test_repeats_are_whole_numbers_around_the_mean(often: list[float], seed: int) -> None:
    values = np.array(often)
    times = times_this_epoch(values, np.random.default_rng(seed))
    assert (np.abs(times - values) < 1).all()
    assert abs(times.sum() - values.sum()) < 1 + 1e-6


def test_samples_repeat_and_are_drawn_for_apart(dataset: LatentDataset) -> None:
    chosen = Selection(dataset).where("label == 1").repeated("2 + (caption is null)")
    sampler = BucketBatchSampler(chosen, 4)
    counts = seen(sampler)
    assert set(counts.values()) == {2, 3}
    turns: dict[int, set[int]] = {}
    for batch in sampler:
        for number, turn in zip(batch, batch.turns, strict=True):  # type: ignore[attr-defined]
            turns.setdefault(number, set()).add(turn)
    assert all(found == set(range(counts[number])) for number, found in turns.items())
    over_epochs = Counter(
        chain(*(seen(BucketBatchSampler(Selection(dataset).repeated(0.3), 4, seed=i)) for i in range(40)))
    )
    assert len(over_epochs) == len(dataset)
    assert 0.25 < over_epochs.total() / 40 / len(dataset) < 0.35


def test_weights_keep_the_length(dataset: LatentDataset) -> None:
    chosen = Selection(dataset).weighted([1.0] * 50 + [3.0] * 50)
    counts = seen(BucketBatchSampler(chosen, 4))
    assert 98 <= counts.total() <= 102
    assert 68 <= sum(count for number, count in counts.items() if number >= 50) <= 82


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda selection: selection.split(0.5, 0.5), "between 0 and 1"),
        (lambda selection: selection.repeated(-1), "at least 0"),
        (lambda selection: selection.repeated("attributes.nothing"), "at least 0"),
        (lambda selection: selection.weighted(0.0), "all `weights` are 0"),
        (lambda selection: selection.where("width"), "no condition"),
    ],
)
def test_what_cannot_be_chosen(dataset: LatentDataset, wrong: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        wrong(Selection(dataset))


def test_a_state_of_another_selection_is_refused(dataset: LatentDataset) -> None:
    state = BucketBatchSampler(Selection(dataset).where("label == 1"), 4).state_dict()
    with pytest.raises(UsageError, match="the cache's selection"):
        BucketBatchSampler(Selection(dataset).where("label == 2"), 4).load_state_dict(state)
    with pytest.raises(UsageError, match="the cache's selection"):
        BucketBatchSampler(dataset, 4).load_state_dict(state)  # one that knows of none


@pytest.fixture(scope="module")
def mix(dataset: LatentDataset, tmp_path_factory: pytest.TempPathFactory) -> MixedDataset:
    other = make_cache(tmp_path_factory.mktemp("caches") / "o", [{(32, 64): 6, (64, 64): 4}])
    return MixedDataset([dataset, LatentDataset(other, columns=("key", "label"))])


def test_a_mix_has_all_samples_in_shared_batches(mix: MixedDataset) -> None:
    sampler = BucketBatchSampler(mix, 8)
    found: Counter[tuple[int, str]] = Counter()
    shared = 0
    for batch in LatentLoader(mix, sampler):
        places = batch["dataset"].tolist()
        assert [f"k{int(n)}" for n in batch["latents"][:, 0, 0, 0]] == batch["key"]
        assert "caption" not in batch  # the other one doesn't give it
        shared += len(set(places)) == 2
        found.update(zip(places, batch["key"], strict=True))
    assert set(found.values()) == {1}
    assert len(found) == len(mix) == 110
    assert shared
    assert mix[-1]["key"] == "k9"
    assert mix.table(["key"]).num_rows == 110


def test_a_mix_in_proportions(mix: MixedDataset) -> None:
    sampler = BucketBatchSampler(mix.in_proportions(0.75, 0.25), 4)
    counts = Counter(number < 100 for number in chain(*sampler))
    assert counts[True] == 100
    assert 31 <= counts[False] <= 35
    with pytest.raises(UsageError, match="`proportions`"):
        mix.in_proportions(1.0)


def test_a_state_of_another_mix_is_refused(mix: MixedDataset, dataset: LatentDataset) -> None:
    state = BucketBatchSampler(mix, 4).state_dict()
    BucketBatchSampler(mix, 4).load_state_dict(state)
    with pytest.raises(UsageError, match=r"the cache's"):
        BucketBatchSampler(MixedDataset([*mix.datasets, dataset]), 4).load_state_dict(state)


def test_latents_of_other_models_are_not_mixed(dataset: LatentDataset, tmp_path: Path) -> None:
    other = LatentDataset(make_cache(tmp_path / "other", [{(32, 64): 2}], weights="others"))
    with pytest.raises(UsageError, match="model weights w and others"):
        MixedDataset([dataset, other])
