"""Scores on a device that is short of memory, and whatever the caller has set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dcae_cache.errors import ModelError, NoMemoryError
from dcae_cache.metrics import image_scores
from dcae_cache.metrics.image_scores import Scores, score_batch
from dcae_cache.metrics.set_scores import Fid, Lpips
from helpers.features import Features

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


def pictures(count: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_scoring_goes_in_pieces_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    images, ours = pictures(6, 1), pictures(6, 2)
    expected, given, real = score_batch(ours, images), [], image_scores._score

    def short(reconstructions: Tensor, images: Tensor, device: torch.device) -> list[Scores]:
        given.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return real(reconstructions, images, device)

    monkeypatch.setattr(image_scores, "_score", short)
    for found, right in zip(score_batch(ours, images), expected, strict=True):
        assert found.psnr == pytest.approx(right.psnr)
        assert found.ssim == pytest.approx(right.ssim, abs=1e-6)
    assert given == [6, 3, 1, 1, 1, 1, 1, 1]


def test_a_pair_that_does_not_fit_on_the_card_is_scored_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    images, ours, real = pictures(2, 1), pictures(2, 2), image_scores._score
    expected = score_batch(ours, images)

    def full(reconstructions: Tensor, images: Tensor, device: torch.device) -> list[Scores]:
        if device.type == "cuda":
            raise RuntimeError("CUDA error: out of memory")
        return real(reconstructions, images, device)

    monkeypatch.setattr(image_scores, "_score", full)
    found = score_batch(ours, images, torch.device("cuda:0"))
    assert [one.mse for one in found] == [one.mse for one in expected]


def test_a_card_that_fails_while_scoring_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> list[Scores]:
        raise RuntimeError("CUDA error: device lost")

    monkeypatch.setattr(image_scores, "_score", lost)
    with pytest.raises(ModelError, match="cuda:0 failed while scoring: CUDA error: device lost"):
        score_batch(pictures(1, 1), pictures(1, 2), torch.device("cuda:0"))


class ShortFeatures(Features):
    """Runs out of memory above two images, and after the features were added to their sum."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        features: Tensor = super().forward(images)
        return features


def test_fid_goes_in_pieces_and_counts_each_image_once() -> None:
    images, ours = pictures(9, 1), pictures(9, 2) // 2
    whole, short = Fid(feature=Features()), Fid(feature=ShortFeatures())
    for fid in (whole, short):
        fid.add(images, ours)
    assert short.result().value == pytest.approx(whole.result().value, rel=1e-4)


def test_fid_that_fails_behind_its_first_sum_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fid, whole = Fid(feature=Features()), Fid(feature=Features())
    real, failed = type(fid._metric).update, []

    def update(self: object, images: Tensor, real: bool) -> None:
        updated(self, images, real)
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    updated = real
    before = fid._metric.real_features_sum.clone()
    monkeypatch.setattr(fid._metric, "update", lambda images, real: update(fid._metric, images, real))
    fid._metric.reset()
    with pytest.raises(NoMemoryError, match="no memory to compute FID of one image"):
        fid.add(pictures(1, 1), pictures(1, 2))
    assert torch.equal(fid._metric.real_features_sum, before)
    assert whole is not fid


class Product(nn.Module):
    """Notes how exact a product is where LPIPS runs its network."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()
        self.precisions: set[str] = set()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        product = a.flatten(1) @ b.flatten(1).T
        self.dtypes.add(product.dtype)
        self.precisions.add(torch.get_float32_matmul_precision())
        return product.mean()


def test_networks_of_scores_run_in_exact_float32() -> None:
    network, before = Product(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            Lpips(network=network).add(pictures(2, 1), pictures(2, 2))
    finally:
        torch.set_float32_matmul_precision(before)
    assert (network.dtypes, network.precisions) == ({torch.float32}, {"highest"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_scores_on_cuda_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    images, ours = pictures(6, 1), pictures(6, 2)
    for found, right in zip(score_batch(ours, images, torch.device("cuda")), score_batch(ours, images), strict=True):
        assert found.psnr == pytest.approx(right.psnr, rel=1e-9)
        assert found.ssim == pytest.approx(right.ssim, abs=1e-4)
