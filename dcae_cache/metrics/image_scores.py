"""How close reconstructions are to their images: MSE, MAE, PSNR and SSIM on the [0, 255] scale, as the DC-AE papers
use them.

SSIM runs in float32, as torchmetrics' users have it: of pictures without any texture it is right to 1e-3 only. All
else is in float64. Knows nothing of caches or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..compute.devices import device_errors
from ..compute.exact import exact_math
from ..compute.pieces import Pieces
from ..errors import TensorError

_LEVELS = 255.0
_SIDE = 7  # of the uniform window
_WINDOW = 11  # side of the Gaussian one


@dataclass(frozen=True, slots=True)
class Scores:
    """One image's reconstruction, both uint8.

    ``mse``: mean squared error, in squared grey levels of 255. ``psnr``: 10 log10(255^2 / mse) in dB, infinite for
    equal images. ``ssim``: at most 1; 11x11 Gaussian window of sigma 1.5 (Wang et al. 2004), as torchmetrics has it.
    ``ssim_uniform``: the same with a 7x7 uniform window and sample covariances, scikit-image's default, which older
    comparisons used. ``mae``: mean absolute error, in grey levels.
    """

    mse: float
    psnr: float
    ssim: float
    ssim_uniform: float
    mae: float

    @staticmethod
    def mean(scores: Sequence[Scores]) -> Scores:
        """The mean of each score over the images (of PSNR: the mean of the images' PSNRs). Needs at least one."""
        return Scores(
            *(math.fsum(getattr(score, item.name) for score in scores) / len(scores) for item in fields(Scores))
        )


def score(reconstruction: Tensor, image: Tensor) -> Scores:
    """Compare two images, uint8 [3, H, W] each, H and W at least 11."""
    return score_batch(reconstruction[None], image[None])[0]


def score_batch(reconstructions: Tensor, images: Tensor, near: torch.device | None = None) -> list[Scores]:
    """The scores of each pair, uint8 [N, 3, H, W] each.

    ``near``: the device that is at hand. The work is done there if it is CUDA, else on the CPU; in pieces where its
    memory is short, and on the CPU where not even one pair fits. Raises TensorError for other dtypes, shapes that
    differ, or images smaller than SSIM's window, ModelError for a device that fails.
    """
    _check(reconstructions, images)
    device = near if near is not None and near.type == "cuda" else torch.device("cpu")

    def work(rows: slice, size: int) -> list[Scores]:
        return _score(reconstructions[rows], images[rows], device)

    def misfit(rows: slice, reason: str) -> list[Scores]:
        return _score(reconstructions[rows], images[rows], torch.device("cpu"))

    with device_errors(device, "scoring"):
        pieces = Pieces(device).run(len(images), images.shape[1:], work, misfit)
    return [scores for piece in pieces for scores in piece]


def _score(reconstructions: Tensor, images: Tensor, device: torch.device) -> list[Scores]:
    from torchmetrics.functional.image import structural_similarity_index_measure  # a second, for scipy's sake

    with exact_math(device):
        ours, target = (batch.to(device).double() for batch in (reconstructions, images))
        difference = ours - target
        mse = difference.square().mean(dim=(1, 2, 3)).tolist()
        mae = difference.abs().mean(dim=(1, 2, 3)).tolist()
        ssim = structural_similarity_index_measure(ours.float(), target.float(), data_range=_LEVELS, reduction="none")
        assert isinstance(ssim, Tensor)
        uniform = _ssim_uniform(ours, target).tolist()
        columns = zip(mse, ssim.reshape(-1).tolist(), uniform, mae, strict=True)
    return [Scores(m, 10 * math.log10(_LEVELS**2 / m) if m else math.inf, s, u, a) for m, s, u, a in columns]


def _ssim_uniform(ours: Tensor, target: Tensor) -> Tensor:
    """SSIM [N] with the window, the covariances and the margin of ``skimage.metrics.structural_similarity``."""
    count = _SIDE**2
    c1, c2 = (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2

    def mean(values: Tensor) -> Tensor:
        return avg_pool2d(values, _SIDE, stride=1)

    mean_a, mean_b = mean(ours), mean(target)
    unbiased = count / (count - 1)
    variance_a = unbiased * (mean(ours * ours) - mean_a * mean_a)
    variance_b = unbiased * (mean(target * target) - mean_b * mean_b)
    covariance = unbiased * (mean(ours * target) - mean_a * mean_b)
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2)
    return (above / below).mean(dim=(1, 2, 3))


def _check(reconstructions: Tensor, images: Tensor) -> None:
    for name, batch in (("reconstructions", reconstructions), ("images", images)):
        if batch.dtype != torch.uint8 or batch.dim() != 4 or batch.shape[1] != 3 or not len(batch):
            raise TensorError(f"{name} are {batch.dtype} {list(batch.shape)}, expected uint8 [N, 3, H, W]")
    if reconstructions.shape != images.shape:
        raise TensorError(f"reconstructions are {list(reconstructions.shape)}, their images {list(images.shape)}")
    if min(images.shape[2:]) < _WINDOW:
        height, width = images.shape[2:]
        raise TensorError(f"images are {height}x{width}; SSIM's window needs at least {_WINDOW}x{_WINDOW}")
