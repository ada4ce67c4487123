"""Scores are torchmetrics' and scikit-image's, to 1e-6, one by one or in a batch."""

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
        theirs = structural_similarity_index_measure(ours[None].float(), image[None].float(), data_range=255.0)
        assert found.ssim == pytest.approx(float(theirs), abs=1e-6)


def test_a_batch_scores_as_its_images_do(pairs: tuple[Tensor, Tensor]) -> None:
    for whole, ours, image in zip(score_batch(*pairs), *pairs, strict=True):
        alone = score(ours, image)
        assert alone.ssim == pytest.approx(whole.ssim, abs=1e-6)
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
