"""Scores are torchmetrics' and scikit-image's, to 1e-9, one by one or in a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from dcae_cache.compute.ranges import to_uint8
from dcae_cache.errors import TensorError
from dcae_cache.metrics import ssim
from dcae_cache.metrics.image_scores import Scores, score, score_batch
from helpers.images import make_image


def tensor(height: int, width: int, seed: int) -> Tensor:
    return torch.from_numpy(np.array(make_image(height, width, seed))).permute(2, 0, 1)


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    images = torch.stack([tensor(96, 64, seed) for seed in range(4)])
    noise = torch.randint(-40, 41, images.shape, generator=torch.Generator().manual_seed(0))
    noise *= torch.arange(4).view(4, 1, 1, 1) + 1
    return (images.int() + noise).clamp(0, 255).to(torch.uint8), images


def test_scores_are_those_of_the_libraries(pairs: tuple[Tensor, Tensor]) -> None:
    for found, ours, image in zip(score_batch(*pairs), *pairs, strict=True):
        a, b = ours.numpy(), image.numpy()
        assert found.mse == pytest.approx(mean_squared_error(a, b), rel=1e-9)
        assert found.psnr == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-9)
        assert found.mae == pytest.approx(np.abs(a.astype(float) - b.astype(float)).mean(), rel=1e-9)
        assert found.ssim_uniform == pytest.approx(structural_similarity(a, b, channel_axis=0), abs=1e-9)
        assert found.ssim == pytest.approx(in_float64(ours, image), abs=1e-9)


def in_float64(ours: Tensor, image: Tensor) -> float:
    """torchmetrics' SSIM; in float32 it is itself some 1e-6 from that."""
    return float(structural_similarity_index_measure(ours[None].double(), image[None].double(), data_range=255.0))


def two_tones(height: int, width: int) -> Tensor:
    """Black and white without a value between: variances that float32 would lose."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, height // 3 :, width // 2 :] = 255
    return image


@pytest.mark.parametrize("size", [(11, 11), (11, 200), (67, 13), (300, 500)])
@pytest.mark.parametrize("kind", ["flat", "two tones", "noise", "picture"])
def test_scores_are_those_of_whole_windows_in_float64(
    kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the image is cut into strips, and however small its variances are beside its values."""
    monkeypatch.setattr(ssim, "_STRIP_PIXELS", 4096)
    random = torch.Generator().manual_seed(1)
    image = {
        "flat": torch.full((3, *size), 251, dtype=torch.uint8),
        "two tones": two_tones(*size),
        "noise": torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=random),
        "picture": tensor(*size, 3),
    }[kind]
    ours = (image.int() + torch.randint(-2, 3, image.shape, generator=random)).clamp(0, 255).to(torch.uint8)
    found = score(ours, image)
    a, b = ours.numpy(), image.numpy()
    assert found.ssim == pytest.approx(in_float64(ours, image), abs=1e-9)
    assert found.ssim_uniform == pytest.approx(structural_similarity(a, b, channel_axis=0), abs=1e-9)
    assert found.mse == pytest.approx(mean_squared_error(a, b), rel=1e-12)


def test_scores_depend_neither_on_threads_nor_on_strips(
    pairs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    found = []
    for threads, pixels in ((1, 2**17), (3, 2**17), (2, 2**10)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(ssim, "_STRIP_PIXELS", pixels)
        try:
            found.append(score_batch(*pairs))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        for one, right in zip(other, found[0], strict=True):
            assert (one.mse, one.mae) == (right.mse, right.mae)
            assert one.ssim == pytest.approx(right.ssim, abs=1e-12)
            assert one.ssim_uniform == pytest.approx(right.ssim_uniform, abs=1e-12)


def test_a_batch_scores_as_its_images_do(pairs: tuple[Tensor, Tensor]) -> None:
    for whole, ours, image in zip(score_batch(*pairs), *pairs, strict=True):
        alone = score(ours, image)
        assert alone.ssim == pytest.approx(whole.ssim, abs=1e-9)
        assert (alone.mse, alone.psnr, alone.mae) == (whole.mse, whole.psnr, whole.mae)


def test_scores_move_as_they_should(pairs: tuple[Tensor, Tensor]) -> None:
    scores = score_batch(*pairs)  # more noise from one to the next
    assert [s.psnr for s in scores] == sorted((s.psnr for s in scores), reverse=True)
    mean = Scores.mean(scores)
    assert mean.psnr == pytest.approx(sum(s.psnr for s in scores) / 4)
    assert mean.ssim_uniform == pytest.approx(sum(s.ssim_uniform for s in scores) / 4)


def test_equal_images_score_perfectly() -> None:
    image = tensor(64, 64, 1)
    found = score(image, image)
    assert (found.mse, found.mae, found.psnr) == (0, 0, math.inf)
    assert (found.ssim, found.ssim_uniform) == (pytest.approx(1), pytest.approx(1))


def test_pixels_to_uint8_rounds_and_clamps() -> None:
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 0.003, 1.0, 5.0])).tolist() == [0, 0, 128, 128, 255, 255]


def test_what_is_no_pair_of_images_is_refused() -> None:
    image = tensor(64, 64, 1)[None]
    with pytest.raises(TensorError, match="expected uint8"):
        score_batch(image.float(), image)
    with pytest.raises(TensorError, match="expected uint8"):
        score_batch(image, image[0])
    with pytest.raises(TensorError, match="their images"):
        score_batch(image, image[..., :32])
    with pytest.raises(TensorError, match="at least 11x11"):
        score_batch(image[..., :10], image[..., :10])
