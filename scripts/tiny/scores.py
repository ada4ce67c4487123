"""PSNR and SSIM of whole pictures, and the size of the latents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from dcae_cache.compute.ranges import to_uint8, to_unit
from dcae_cache.models.network import DCAENetwork

from .photos import list_photos, whole_photos


@torch.inference_mode()
def reconstruct(network: DCAENetwork, pixels: Tensor) -> Tensor:
    """uint8 to uint8 through the autoencoder in fp32: what a saved picture holds."""
    assert network.encoder is not None
    assert network.decoder is not None
    device = next(network.parameters()).device
    out = network.decoder(network.encoder(to_unit(pixels.to(device))))
    return to_uint8(out).cpu()


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio of one picture, peak 255."""
    error = (first.double() - second.double()).square().mean()
    return float(10 * torch.log10(255.0**2 / error))


def score(network: DCAENetwork, pictures: Iterable[Tensor], with_ssim: bool = False) -> dict[str, float]:
    """Means over the pictures of each picture's own score."""
    network.eval()
    psnrs, ssims = [], []
    for pixels in pictures:
        out = reconstruct(network, pixels)
        psnrs.append(psnr(pixels, out))
        if with_ssim:
            ssims.append(float(structural_similarity_index_measure(out.float(), pixels.float(), data_range=255.0)))
    network.train()
    means = {"psnr": sum(psnrs) / len(psnrs), "count": len(psnrs)}
    return means | ({"ssim": sum(ssims) / len(ssims)} if ssims else {})


def score_folder(network: DCAENetwork, folder: Path) -> dict[str, dict[str, float]]:
    """Scores of a Kodak-like folder at short side 256, 512 and native size."""
    paths = list_photos(folder)
    sides: dict[str, int | None] = {"256": 256, "512": 512, "native": None}
    return {name: score(network, whole_photos(paths, side), with_ssim=True) for name, side in sides.items()}


@torch.inference_mode()
def latent_moments(network: DCAENetwork, paths: list[Path]) -> tuple[float, float]:
    """Mean and deviation of the raw latents over whole photos at their native size."""
    assert network.encoder is not None
    device = next(network.parameters()).device
    count, total, squares = 0, 0.0, 0.0
    for pixels in whole_photos(paths, None):
        latents = network.encoder(to_unit(pixels.to(device))).double()
        count += latents.numel()
        total += float(latents.sum())
        squares += float(latents.square().sum())
    mean = total / count
    return mean, (squares / count - mean**2) ** 0.5
