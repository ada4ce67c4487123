"""Pixels between their ranges: uint8 levels, and [-1, 1] as networks want them. Knows nothing of files."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels around [-1, 1] to uint8 of the same shape: clamped, and rounded to the nearest level."""
    return pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
