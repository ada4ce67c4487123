"""How close reconstructions are to their images: MSE, MAE, PSNR and SSIM on the [0, 255] scale, as the DC-AE papers
use them.

Sums are of integers, exact, or in float64. Knows nothing of caches or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..compute.devices import device_errors
from ..compute.exact import exact_math
from ..compute.pieces import Pieces
from ..errors import TensorError
from .ssim import LEVELS, WINDOW, ssim_gaussian, ssim_uniform


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
    with exact_math(device):
        ours, target = reconstructions.to(device), images.to(device)
        difference = ours.float() - target.float()  # exact, and so are its squares
        count = difference[0].numel()
        mse = (difference.square().sum(dim=(1, 2, 3), dtype=torch.float64) / count).tolist()
        mae = (difference.abs().sum(dim=(1, 2, 3), dtype=torch.float64) / count).tolist()
        ssim, uniform = ssim_gaussian(ours, target).tolist(), ssim_uniform(ours, target).tolist()
        columns = zip(mse, ssim, uniform, mae, strict=True)
    return [Scores(m, 10 * math.log10(LEVELS**2 / m) if m else math.inf, s, u, a) for m, s, u, a in columns]


def _check(reconstructions: Tensor, images: Tensor) -> None:
    for name, batch in (("reconstructions", reconstructions), ("images", images)):
        if batch.dtype != torch.uint8 or batch.dim() != 4 or batch.shape[1] != 3 or not len(batch):
            raise TensorError(f"{name} are {batch.dtype} {list(batch.shape)}, expected uint8 [N, 3, H, W]")
    if reconstructions.shape != images.shape:
        raise TensorError(f"reconstructions are {list(reconstructions.shape)}, their images {list(images.shape)}")
    if min(images.shape[2:]) < WINDOW:
        height, width = images.shape[2:]
        raise TensorError(f"images are {height}x{width}; SSIM's window needs at least {WINDOW}x{WINDOW}")
