"""float32 that is float32: torch lets CUDA round it unless told not to. Knows nothing of what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Keep CUDA's float32 convolutions from rounding to TF32 (10 bits), which torch does unless told not to."""
    if device.type != "cuda" or dtype != torch.float32:
        yield
        return
    try:
        before = torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the caller uses torch's newer per-operation switches: theirs to decide
        yield
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
