"""Some images of a batch on their way from the device to the CPU, and the way back to whole batches.

What is to be known of a latent's numbers is found out on the device, so that no thread of the host looks at all of
them. Knows nothing of networks, scales or memory that runs out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..compute.transfers import Transfers

Fault = Literal["not_finite", "out_of_range", "no_memory"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Latents [n, c, h, w] as stored, those of the mirrored images, and per image the largest value without its sign,
    [n] in fp32, NaN where there is one: on the CPU, where their copies may still be under way."""

    latents: Tensor
    mirrored: Tensor | None
    magnitudes: Tensor
    fault: Fault | None = None


def padded(pixels: Tensor, size: int) -> Tensor:
    """``pixels`` with copies of the last image behind them, to ``size`` images in all."""
    lacking = size - len(pixels)
    return pixels if lacking <= 0 else torch.cat([pixels, pixels[-1:].expand(lacking, -1, -1, -1)])


def sent(transfers: Transfers, latents: Tensor, mirrored: Tensor | None, count: int) -> Piece:
    """Start the copies of the first ``count`` latents on the device; what comes behind them is padding."""
    latents, mirrored = latents[:count], None if mirrored is None else mirrored[:count]
    largest = latents.abs().flatten(1).amax(dim=1)
    if mirrored is not None:
        largest = torch.maximum(largest, mirrored.abs().flatten(1).amax(dim=1))
    return Piece(
        transfers.to_host(latents.contiguous()),
        None if mirrored is None else transfers.to_host(mirrored.contiguous()),
        transfers.to_host(largest.float()),
    )


def without_memory(shape: Sequence[int], dtype: torch.dtype, flip: bool) -> Piece:
    """In place of one image that the device has no memory for. ``shape``: [c, h, w] of its latent."""
    nothing = torch.zeros((1, *shape), dtype=dtype, device="cpu")
    return Piece(nothing, nothing if flip else None, torch.zeros(1, device="cpu"), "no_memory")


def join(pieces: Sequence[Piece]) -> tuple[Tensor, Tensor | None, list[float]]:
    """Latents, mirrored latents and magnitudes of the images of all pieces, whose copies have arrived."""
    mirrored = [piece.mirrored for piece in pieces if piece.mirrored is not None]
    latents = _cat([piece.latents for piece in pieces])
    return latents, _cat(mirrored) if mirrored else None, _cat([piece.magnitudes for piece in pieces]).tolist()


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
