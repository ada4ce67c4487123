"""Pieces that change batches: exact values, and random choices that follow from seed, epoch and sample alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcae_cache import BucketBatchSampler, LatentDataset, LatentLoader, Selection
from dcae_cache.errors import CacheError, UsageError
from dcae_cache.reader.batch import BatchNumbers, Draws
from dcae_cache.reader.captions import ChooseCaption
from dcae_cache.reader.transforms import ClassLabels, Drop, MirrorAtRandom, Normalize, SizeConditioning, ToDtype
from helpers.latents import make_cache

COUNT = 60


def describe(number: int) -> dict[str, Any]:
    captions = {"captions": [f"long {number}", f"short {number}", ""], "clip_scores": [3.0, 1.0, 5.0]}
    return {
        "label": str(number % 11) if number % 7 else None,
        "caption": f"own {number}" if number % 2 else None,
        "attributes": json.dumps(captions) if number % 3 else None,
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    parts = [{(64, 96): COUNT // 2}] * 2
    return LatentDataset(make_cache(tmp_path_factory.mktemp("c") / "c", parts, describe=describe, flip=True))


def batch_of(dataset: LatentDataset, *, epoch: int = 0, seed: int = 0) -> dict[str, Any]:
    return dataset.__getitems__(BatchNumbers(range(COUNT), seed=seed, epoch=epoch)).collated


@pytest.mark.parametrize("raw", [False, True])
def test_normalizing_by_the_caches_own_moments(dataset: LatentDataset, raw: bool) -> None:
    plain = LatentDataset(dataset.cache, raw=raw)
    piece = Normalize.of(plain)
    latents = batch_of(plain.with_transforms(piece))["latents"]
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (latents.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert torch.allclose(piece.inverse(latents), batch_of(plain)["latents"], atol=1e-4)
    half = plain.with_transforms(Normalize.of(plain, dtype=torch.bfloat16))
    assert half[0]["latents"].dtype == torch.bfloat16
    assert plain.with_transforms(ToDtype(torch.float16))[0]["latents"].dtype == torch.float16


def test_mirrored_latents_for_some(dataset: LatentDataset) -> None:
    mirroring = dataset.with_transforms(MirrorAtRandom(0.4))
    batch = batch_of(mirroring)
    values = batch["latents"][:, 0, 0, 0]
    assert torch.equal(values, torch.where(batch["mirrored"], -1.0, 1.0) * torch.arange(COUNT))
    assert 10 < int(batch["mirrored"].sum()) < 38
    assert torch.equal(batch["mirrored"], batch_of(mirroring)["mirrored"])
    for other in ({"epoch": 1}, {"seed": 1}):
        assert not torch.equal(batch["mirrored"], batch_of(mirroring, **other)["mirrored"])
    assert mirroring.transforms != dataset.transforms == ()


def test_choices_depend_on_neither_batches_nor_workers(dataset: LatentDataset) -> None:
    changed = dataset.with_transforms(MirrorAtRandom(), Drop("caption", 0.5))
    found = []
    for batch_size, num_workers in ((4, 0), (7, 2)):
        seen = {}
        for batch in LatentLoader(changed, BucketBatchSampler(changed, batch_size), num_workers=num_workers):
            seen.update(zip(batch["key"], zip(batch["mirrored"].tolist(), batch["caption"], strict=True), strict=True))
        found.append(seen)
    assert found[0] == found[1]
    assert len(found[0]) == COUNT


def test_a_sample_that_repeats_is_drawn_for_anew(dataset: LatentDataset) -> None:
    often = Selection(dataset).where("key == 'k5'").repeated(40)
    loader = LatentLoader(dataset.with_transforms(MirrorAtRandom()), BucketBatchSampler(often, 40))
    (batch,) = loader
    assert 8 < int(batch["mirrored"].sum()) < 32


def test_draws_are_even_and_differ_by_purpose() -> None:
    draws = Draws(np.arange(20_000))
    values = draws.uniform("one")
    assert 0 <= values.min() < values.max() < 1
    assert np.histogram(values, 10, (0, 1))[0].min() > 1800
    assert abs(np.corrcoef(values, draws.uniform("other"))[0, 1]) < 0.05
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.05


def test_sdxls_sizes(dataset: LatentDataset) -> None:
    sample = dataset.with_transforms(SizeConditioning())[3]
    assert sample["original_size"].tolist() == [128, 192]
    assert sample["crop_top_left"].tolist() == [1, 2]
    assert sample["target_size"].tolist() == [64, 96]


def test_labels_as_numbers(dataset: LatentDataset) -> None:
    piece = ClassLabels.of(dataset)
    assert piece.names == tuple(map(str, range(11)))  # 10 after 9, not after 1
    labels = batch_of(dataset.with_transforms(piece))["label"]
    assert labels.tolist() == [n % 11 if n % 7 else -1 for n in range(COUNT)]
    dropped = batch_of(dataset.with_transforms(piece, Drop("label", 0.5, value=len(piece.names))))["label"]
    assert set(dropped[dropped != labels].tolist()) == {11}
    assert ClassLabels(["b", "a"]).names == ("b", "a")


def test_captions_are_dropped_for_a_share(dataset: LatentDataset) -> None:
    kept = [bool(text) for text in batch_of(dataset.with_transforms(Drop("caption", 0.5)))["caption"]]
    assert 5 < sum(kept) < 25  # of the 30 that have one
    everything = batch_of(dataset.with_transforms(Drop(share=1.0, value="none")))["caption"]
    assert everything == ["none"] * COUNT
    with pytest.raises(UsageError, match="no 'nonsense'"):
        batch_of(dataset.with_transforms(Drop("nonsense")))


def test_one_of_several_captions(dataset: LatentDataset) -> None:
    by_score = dataset.with_transforms(ChooseCaption("attributes.captions", scores="attributes.clip_scores"))
    words: Counter[str] = Counter()
    for epoch in range(40):
        captions = batch_of(by_score, epoch=epoch)["caption"]
        assert all((caption == "") == (number % 3 == 0) for number, caption in enumerate(captions))
        assert all(caption in ("", f"long {n}", f"short {n}") for n, caption in enumerate(captions))
        words.update(caption.split()[0] for caption in captions if caption)
    assert 0.72 < words["long"] / words.total() < 0.78
    by_source = dataset.with_transforms(ChooseCaption("caption", "attributes.captions", weights=(1, 3)))
    words = Counter()
    for epoch in range(40):
        captions = batch_of(by_source, epoch=epoch)["caption"]
        words.update(caption.split()[0] for n, caption in enumerate(captions) if n % 6 in (1, 5))  # with both
    assert 0.2 < words["own"] / words.total() < 0.3


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda: ChooseCaption(), "at least one column"),
        (lambda: ChooseCaption("caption", weights=(1, 2)), "`weights` must be 1 numbers"),
        (lambda: ChooseCaption("caption", "label", scores="attributes.x"), "one source"),
        (lambda: MirrorAtRandom(1.5), "`share` must be between 0 and 1"),
        (lambda: Normalize([0.0], [0.0]), "`std` of channel 0 is 0"),
        (lambda: Normalize([0.0], []), "not 1 and 0"),
    ],
)
def test_pieces_that_make_no_sense(wrong: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        wrong()


def test_scores_that_do_not_fit_are_named(dataset: LatentDataset) -> None:
    with pytest.raises(UsageError, match=r"attributes.nothing must be a list"):
        batch_of(dataset.with_transforms(ChooseCaption("attributes.captions", scores="attributes.nothing")))


def test_what_the_cache_lacks_is_said_at_once(tmp_path: Path) -> None:
    plain = LatentDataset(make_cache(tmp_path / "plain", [{(32, 32): 1}]))
    with pytest.raises(CacheError, match="encode --flip"):
        plain.with_transforms(MirrorAtRandom())
    with pytest.raises(CacheError, match="no samples"):
        Normalize.of(LatentDataset(make_cache(tmp_path / "empty", [])))
    with pytest.raises(UsageError, match="No column 'nonsense'"):
        plain.with_transforms(ChooseCaption("nonsense"))
