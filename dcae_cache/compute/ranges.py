"""Pixels between their ranges: uint8 levels, and [-1, 1] as networks want them. Knows nothing of files."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels around [-1, 1] to uint8 of the same shape: clamped, and rounded to the nearest level."""
    return pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """uint8 images to float32 pixels in [-1, 1], same shape and device: x / 127.5 - 1."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)  # in place: of uint8, ``to`` has made a copy
