"""How close a reconstruction is to its image: MSE, PSNR and SSIM on the [0, 255] scale, as the DC-AE papers use them.

Knows nothing of caches or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


@dataclass(frozen=True, slots=True)
class Scores:
    """``mse`` in squared grey levels of 255, ``psnr`` in dB (infinite for equal images), ``ssim`` at most 1."""

    mse: float
    psnr: float
    ssim: float

    @staticmethod
    def mean(scores: Sequence[Scores]) -> Scores:
        """The mean of each score over the images (of PSNR: the mean of the images' PSNRs). Needs at least one."""
        count = len(scores)
        return Scores(
            math.fsum(s.mse for s in scores) / count,
            math.fsum(s.psnr for s in scores) / count,
            math.fsum(s.ssim for s in scores) / count,
        )


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels around [-1, 1] to uint8 of the same shape: clamped, and rounded to the nearest level."""
    return pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def score(reconstruction: Tensor, image: Tensor) -> Scores:
    """Compare two uint8 images [3, H, W]. SSIM with an 11x11 Gaussian window of sigma 1.5 (Wang et al. 2004)."""
    ours, target = reconstruction.float()[None], image.float()[None]
    mse = (ours - target).double().square().mean().item()
    ssim = structural_similarity_index_measure(ours, target, data_range=255.0)
    assert isinstance(ssim, Tensor)
    return Scores(mse, 10 * math.log10(255.0**2 / mse) if mse else math.inf, ssim.item())
