"""float32 that is float32: torch lets CUDA round it unless told not to. Knows nothing of what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import UsageError
from ..records import Bucket


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


TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


# Pixels per automatic batch. CUDA: 32 images of 512x512, about 5 GB of activations with f32c32 in bf16.
_AUTO_BATCH_PIXELS = {"cuda": 32 * 512 * 512, "mps": 8 * 512 * 512, "cpu": 4 * 512 * 512}


def pick_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:N" or "mps". Raises UsageError where it isn't there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is no device; expected auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here."
        )
    return device


def auto_batch_size(bucket: Bucket, device_type: str) -> int:
    """Images per batch when the user names no number: by area alone, so that the same run makes the same batches."""
    return max(1, _AUTO_BATCH_PIXELS.get(device_type, _AUTO_BATCH_PIXELS["cpu"]) // (bucket.height * bucket.width))
