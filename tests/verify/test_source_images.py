"""Chosen samples are read again, each once, in full batches, and no more of the source than they need."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

from dcae_cache.cache.integrity import Finding
from dcae_cache.cache.recipe import config_of
from dcae_cache.errors import VerificationError
from dcae_cache.images.pixels import load_pixels
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.verify import source_images as samples
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from dcae_cache.verify.source_images import COLUMNS, SampleBatch, SourceImages, pick_samples
from helpers.images import encode, encoded_image, make_folder, tiny_config


def read(cache: Path, numbers: list[int], source: str | None = None) -> tuple[list[SampleBatch], list[Finding]]:
    found: list[Finding] = []
    images = SourceImages(LatentDataset(cache, columns=COLUMNS), source, "cpu")
    return list(images.batches(numbers, found.append)), found


def make_tar(path: Path, first: int, count: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            data = encoded_image(200, 200, seed=number)
            info = tarfile.TarInfo(f"{number:04d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_batches_hold_the_pixels_that_were_encoded(photos: Path, cache: Path) -> None:
    batches, found = read(cache, list(range(20)))
    assert found == []
    dataset, rule = LatentDataset(cache, columns=COLUMNS), tiny_config().bucket_rule(32)
    assert sorted(number for batch in batches for number in batch.numbers) == list(range(20))
    for batch in batches:
        for number, key, image in zip(batch.numbers, batch.keys, batch.images, strict=True):
            assert dataset.describe(number)["key"] == key
            expected = load_pixels((photos / f"{key}.jpg").read_bytes(), rule, 10**9).data
            assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1))


def test_batches_are_full_whatever_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen squares in eight parts: one batch of them, or as few as the groups allow."""
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(16):
        (source / f"{number:02d}.jpg").write_bytes(encoded_image(150, 150, seed=number))
    encode(source, tmp_path / "out", part_size=2)
    (batch,), _ = read(tmp_path / "out", list(range(16)))
    assert batch.images.shape == (16, 3, 128, 128)
    monkeypatch.setattr(samples, "_AT_ONCE", 5)
    batches, found = read(tmp_path / "out", [0, 1, 2, 5, 7, 8, 9, 11, 15])
    assert [batch.numbers for batch in batches] == [[0, 1, 2, 5, 7], [8, 9, 11, 15]]
    assert found == []


def test_samples_are_spread_over_buckets(cache: Path) -> None:
    dataset = LatentDataset(cache)
    buckets = dataset.buckets()
    picked = pick_samples(dataset, len(buckets), 0)
    assert all(any(number in run for run in runs for number in picked) for runs in buckets.values())
    assert pick_samples(dataset, 7, 1) == pick_samples(dataset, 7, 1) != pick_samples(dataset, 7, 2)
    assert pick_samples(dataset, None, 0) == list(range(20))


def test_tars_are_read_no_further_than_the_last_sample_wanted(tmp_path: Path) -> None:
    for tar in range(3):
        make_tar(tmp_path / f"{tar}.tar", 10 * tar, 6)
    encode(tmp_path / "{0..2}.tar", tmp_path / "out")
    keys = [sample["key"] for sample in LatentDataset(tmp_path / "out")]
    end = (tmp_path / "1.tar").stat().st_size // 2
    with (tmp_path / "1.tar").open("r+b") as file:
        file.truncate(end)  # nobody who wants its first sample alone should notice
    batches, found = read(tmp_path / "out", [0, 6, 17])
    assert found == []
    assert [key for batch in batches for key in batch.keys] == [keys[0], keys[6], keys[17]]
    batches, found = read(tmp_path / "out", [11])
    assert batches == []
    assert found[0].where == keys[11]


def test_a_tar_that_is_gone_is_one_finding_and_the_others_are_checked(tmp_path: Path) -> None:
    for tar in range(3):
        make_tar(tmp_path / f"{tar}.tar", 10 * tar, 4)
    encode(tmp_path / "{0..2}.tar", tmp_path / "out")
    (tmp_path / "1.tar").unlink()
    result = verify_cache(tmp_path / "out", VerifyOptions(device="cpu", samples=None))
    assert len(result.checked) == 8
    (finding,) = result.findings
    assert "1.tar" in finding.what
    assert "and 3 more" in finding.what


def test_a_source_that_is_gone_says_what_to_do(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 3)
    encode(source, tmp_path / "out")
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(VerificationError, match="`source`"):
        read(tmp_path / "out", [0])
    batches, found = read(tmp_path / "out", [0, 1, 2], str(tmp_path / "elsewhere"))
    assert sum(len(batch.keys) for batch in batches) == 3
    assert found == []


def test_a_recipe_gives_back_its_config(cache: Path) -> None:
    config = config_of(LatentDataset(cache).index["recipe"])
    assert (config.resolution, config.max_aspect, config.dtype) == (128, 2.0, "fp32")
    assert config.bucket_rule(32) == tiny_config().bucket_rule(32)


def test_tars_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder, first in (("a", 0), ("b", 10)):
        (tmp_path / "tars" / folder).mkdir(parents=True)
        make_tar(tmp_path / "tars" / folder / "0.tar", first, 2)
    cache = tmp_path / "out"
    encode(tmp_path / "tars", cache)
    assert read(cache, list(range(4)), str(tmp_path / "tars"))[1] == []
    (tmp_path / "tars").rename(tmp_path / "moved")
    assert read(cache, list(range(4)), str(tmp_path / "moved"))[1] == []
    (tmp_path / "moved/b").rename(tmp_path / "moved/c")
    batches, found = read(cache, [0, 1], str(tmp_path / "moved"))
    assert ([key for batch in batches for key in batch.keys], found) == (["0000", "0001"], [])
    with pytest.raises(VerificationError, match=r"has 2 files called 0\.tar, .* which of them was .*b/0\.tar"):
        read(cache, [2, 3], str(tmp_path / "moved"))
