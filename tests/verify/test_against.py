"""A cache beside other autoencoders and caches: the same pixels for all, each failure its own."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from dcae_cache.cache.index import load_index
from dcae_cache.compare import side_by_side
from dcae_cache.compare.comparison import CompareOptions, compare_images
from dcae_cache.compare.measure import crop_alike, measure
from dcae_cache.compare.side_by_side import ImageBatch, Trial
from dcae_cache.decode.cache_model import CacheModel
from dcae_cache.errors import UsageError
from dcae_cache.metrics.set_scores import Fid
from dcae_cache.models.options import HubOptions
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.verify.against import CacheAutoencoder, ComparedWith, compare_cache
from dcae_cache.verify.checks import VerifyOptions, VerifyReport, verify_cache
from dcae_cache.verify.source_images import COLUMNS, SourceImages
from helpers.command import run
from helpers.features import Features
from helpers.images import encode, make_folder
from helpers.models_for_comparison import KINDS, save_model

CPU = torch.device("cpu")
OPTIONS = ("--device", "cpu", "--offline")
OFFLINE = HubOptions(offline=True, cache_dir="nowhere")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root, kind) for kind in KINDS}


def verify(cache: Path, *against: object, **options: Any) -> VerifyReport:
    settings = {"device": "cpu", "samples": 6, "hub": OFFLINE} | options
    return verify_cache(cache, VerifyOptions(against=tuple(map(str, against)), **settings))


def test_every_class_of_autoencoder_stands_beside_the_cache(cache: Path, models: dict[str, Path]) -> None:
    on_batch: list[tuple[str, int, int]] = []
    options = VerifyOptions(device="cpu", samples=6, hub=OFFLINE, against=tuple(map(str, models.values())))
    result = verify_cache(cache, options, lambda *said: on_batch.append(said))
    side = result.side_by_side
    assert result.ok
    assert side is not None
    own, *others = side.standings
    assert own.name == "latents (stored)"
    assert own.mean is not None
    assert result.mean is not None
    assert own.mean.psnr == pytest.approx(result.mean.psnr, abs=1e-3)
    assert [result.name for result in others] == list(models)
    for result, (_, _, factor, channels) in zip(others, KINDS.values(), strict=True):
        assert result.failure is None
        assert result.num_images == own.num_images == 6
        assert (result.spatial_compression_ratio, result.latent_channels) == (factor, channels)
        assert result.encode_seconds
        assert result.decode_seconds
        assert result.compression_ratio == pytest.approx(3 * factor**2 / channels / 2)
    assert own.compression_ratio == pytest.approx(3 * 32**2 / 32 / 4)  # stored in fp32
    assert on_batch[-1] == ("images", 36, 36)


def test_verify_live_and_compare_agree(photos: Path, tmp_path: Path) -> None:
    """The same pixels by three ways: stored latents, the model anew, and ``compare`` on the files themselves."""
    encode(photos, tmp_path / "out", max_aspect=4.0, bucket_step=None)
    result = verify(tmp_path / "out", "f32c32-tiny", samples=None)
    assert result.side_by_side is not None
    means = [result.mean for result in result.side_by_side.standings]
    means += [result.mean]
    means += [compare_images([photos], CompareOptions(resolution=128, device="cpu", hub=OFFLINE)).standings[0].mean]
    first = means[0]
    assert first is not None
    for mean in means[1:]:
        assert mean is not None
        assert (mean.psnr, mean.ssim) == (pytest.approx(first.psnr, abs=1e-3), pytest.approx(first.ssim, abs=1e-3))


def test_what_cannot_be_had_is_one_line_and_the_others_go_on(cache: Path, models: dict[str, Path]) -> None:
    side = verify(cache, "taesd", "no/such-model", "no-such-thing", models["kl"]).side_by_side
    assert side is not None
    failures = {result.name: result.failure for result in side.standings}
    assert failures["latents (stored)"] is None
    assert failures["kl"] is None
    for name in ("taesd", "no/such-model", "no-such-thing"):
        assert failures[name]
        assert "\n" not in str(failures[name])
    assert "offline" in str(failures["taesd"])


def test_another_cache_of_the_same_images(photos: Path, cache: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    encode(photos, half, dtype="bf16", part_size=5)
    side = verify(cache, half, samples=None).side_by_side
    assert side is not None
    own, other = side.standings
    assert other.failure is None
    assert other.name == "half (stored)"
    assert own.mean is not None
    assert other.mean is not None
    assert other.latent_bytes == own.latent_bytes / 2  # type: ignore[operator]
    assert other.mean.psnr == pytest.approx(own.mean.psnr, abs=0.2)
    assert other.mean.psnr != own.mean.psnr


def test_caches_are_compared_over_what_both_hold_in_the_same_crop(photos: Path, cache: Path, tmp_path: Path) -> None:
    few, square = tmp_path / "few", tmp_path / "square"
    encode(make_folder(tmp_path / "some", 5), few)
    encode(photos, square, bucket="square", resolution=64)
    side = verify(cache, few, square, samples=None).side_by_side
    assert side is not None
    assert side.num_images == 5
    assert side.notes == [f"{few} holds 5 of 20 samples in the same crop; the others are left out"]
    assert [result.num_images for result in side.standings] == [5, 5, 0]
    assert "holds none of these images in the same crop" in str(side.standings[2].failure)


def test_sides_that_a_factor_does_not_divide_are_cropped_alike(tmp_path: Path) -> None:
    """A factor of 48 beside one of 32: the common multiple of 96 crops 128 to 96, the stored latents' images too."""
    encode(make_folder(tmp_path / "photos", 3, first=2), tmp_path / "out", bucket="square")
    dataset = LatentDataset(tmp_path / "out", columns=COLUMNS)
    model = CacheModel(load_index(tmp_path / "out"), CPU)
    images = SourceImages(dataset, None, "cpu")
    (batch,) = images.batches([0, 1, 2], lambda finding: pytest.fail(str(finding)))
    stored = CacheAutoencoder(
        "stored", dataset, model, {key: n for n, key in zip(batch.numbers, batch.keys, strict=True)}
    )
    whole = model.decode(torch.stack([dataset.latents(number) for number in batch.numbers]))
    cropped = crop_alike(batch.images, [32, 48])
    assert cropped.shape[2:] == (96, 96)
    measured = measure(stored, cropped, stored=stored.stored(batch.keys))
    assert torch.equal(measured.reconstruction, whole[..., 16:112, 16:112])
    assert measured.latent_shape == (32, 4, 4)
    side = Trial(stored)
    side.add(ImageBatch(cropped, batch.keys))
    assert side.result().compression_ratio == pytest.approx(3 * 32**2 / 32 / 4)


def test_fid_is_over_all_images_and_says_how_many(cache: Path) -> None:
    dataset = LatentDataset(cache, columns=COLUMNS)
    images = SourceImages(dataset, None, "cpu")
    side = compare_cache(
        dataset,
        list(range(20)),
        lambda numbers: images.batches(numbers, lambda finding: None),
        lambda: CacheModel(dataset.index, CPU),
        ComparedWith(("f32c32-tiny",), CPU, OFFLINE, [Fid(None, CPU, Features())]),
    )
    stored, live = (result.set_scores[0] for result in side.standings)
    assert stored.label == "FID of 20 images"
    assert stored.value == pytest.approx(live.value, rel=1e-2)
    assert stored.value > 0  # type: ignore[operator]
    assert "2048 or more" in str(stored.note)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="with `fid` only"):
        VerifyOptions(fid_weights=Path("x"))
    for options in ({"against": ("taesd",)}, {"fid": True}, {"min_psnr": 30.0}, {"lpips_weights": Path("x")}):
        with pytest.raises(UsageError, match="`integrity_only` decodes nothing"):
            VerifyOptions(integrity_only=True, **options)  # type: ignore[arg-type]


def test_missing_weights_of_fid_end_the_run_before_anything_is_decoded(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`fid_weights`"):
        verify(cache, fid=True, fid_weights=tmp_path / "none.pth")


def test_the_command_shows_the_table_and_fails_only_if_all_fail(cache: Path, models: dict[str, Path]) -> None:
    done = run("verify", cache, *OPTIONS, "--samples", 4, "--against", models["tiny"], "--against", "taesd")
    lines = done.stdout.splitlines()
    assert any(line.startswith("latents (stored)  32  32") for line in lines)
    assert any(line.startswith("tiny ") for line in lines)
    assert "taesd failed:" in done.stderr
    assert "4 images, the same for all" in done.stdout
    alone = run("verify", cache, *OPTIONS, "--samples", 2, "--against", "taesd", "--json", expect=1)
    report = json.loads(alone.stdout)
    assert report["ok"]
    assert report["side_by_side"]["standings"][1]["failure"]
    assert report["largest_difference"] < 1e-5


def test_one_autoencoder_is_in_memory_at_a_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the memory of one would be counted as another's."""
    models: list[weakref.ref[CacheModel]] = []
    alive: list[int] = []
    opened = side_by_side.Candidates.open

    class Watched(CacheModel):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            models.append(weakref.ref(self))

    def watch(self: side_by_side.Candidates, name: str) -> Any:
        alive.append(sum(model() is not None for model in models))
        return opened(self, name)

    monkeypatch.setattr("dcae_cache.verify.checks.CacheModel", Watched)
    monkeypatch.setattr(side_by_side.Candidates, "open", watch)
    verify(cache, "f32c32-tiny", samples=2)
    assert (len(models), alive) == (2, [0, 0])
