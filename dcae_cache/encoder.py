"""From pixels to stored latents: the one place that knows range, dtype and scale.

    pixels       uint8 [N, H, W, 3] sRGB, on the CPU
    -> network   compute dtype [N, 3, H, W] in [-1, 1]         x / 127.5 - 1
    -> raw       compute dtype [N, c, H/f, W/f]                what the published encoder gives
    -> latents   stored dtype  [N, c, H/f, W/f], on the CPU    raw * scaling_factor, multiplied in fp32

Knows nothing of files, keys or parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import DtypeName
from .errors import UsageError
from .models.autoencoder import DCAE
from .records import Bucket
from .shards import STORED_DTYPES

# Pixels per automatic batch. CUDA: 32 images of 512x512, about 5 GB of activations with f32c32 in bf16.
_AUTO_BATCH_PIXELS = {"cuda": 32 * 512 * 512, "mps": 8 * 512 * 512, "cpu": 4 * 512 * 512}


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Stored-dtype latents [N, c, h, w] on the CPU, those of the mirrored images if asked for, and which are finite."""

    latents: Tensor
    flipped: Tensor | None
    finite: Sequence[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """The part of the recipe that the encoder carries out."""

    dtype: DtypeName
    scaling_factor: float
    flip: bool


class LatentEncoder:
    """Encodes batches of uint8 pixels. ``launch`` queues work on the device, ``PendingBatch.result`` waits for it."""

    def __init__(self, autoencoder: DCAE, settings: EncoderSettings, load_fp32: Callable[[], DCAE]) -> None:
        self._autoencoder = autoencoder
        self._settings = settings
        self._load_fp32 = load_fp32
        self._fp32: DCAE | None = None
        self.device = autoencoder.device

    def launch(self, images: Sequence[NDArray[np.uint8]]) -> PendingBatch:
        """Start encoding images of one size, uint8 [H, W, 3] each. On a GPU this returns before the work is done."""
        pixels = torch.from_numpy(np.stack(images))
        latents, flipped = self._encode(self._autoencoder, pixels)
        return PendingBatch(self, pixels, latents, flipped)

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> EncodedBatch:
        """``launch`` and wait."""
        return self.launch(images).result()

    def retry_in_fp32(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode again with fp32 weights and arithmetic: for batches that overflowed in half precision."""
        if self._fp32 is None:
            self._fp32 = self._load_fp32()
        return self._encode(self._fp32, pixels)

    def _encode(self, autoencoder: DCAE, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        source = pixels.pin_memory() if self.device.type == "cuda" else pixels
        rows = source.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        unit = rows.to(torch.float32).div_(127.5).sub_(1.0).to(autoencoder.dtype)
        latents = self._stored(autoencoder.encode(unit))
        flipped = self._stored(autoencoder.encode(unit.flip(3))) if self._settings.flip else None
        return latents, flipped

    def _stored(self, raw: Tensor) -> Tensor:
        scaled = raw.to(torch.float32).mul(self._settings.scaling_factor).to(STORED_DTYPES[self._settings.dtype])
        return _start_copy_to_cpu(scaled.contiguous())


class PendingBatch:
    """A batch under way on the device."""

    def __init__(self, encoder: LatentEncoder, pixels: Tensor, latents: Tensor, flipped: Tensor | None) -> None:
        self._encoder, self._pixels = encoder, pixels
        self._latents, self._flipped = latents, flipped
        self._event: torch.cuda.Event | None = None
        if encoder.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def result(self) -> EncodedBatch:
        """Wait for the latents. A batch with NaN or Inf is encoded again in fp32; what still isn't finite is marked."""
        if self._event is not None:
            self._event.synchronize()
        latents, flipped = self._latents, self._flipped
        finite = _finite(latents, flipped)
        if not all(finite):
            latents, flipped = self._encoder.retry_in_fp32(self._pixels)
            if self._event is not None:
                torch.cuda.synchronize(self._encoder.device)
            finite = _finite(latents, flipped)
        return EncodedBatch(latents, flipped, finite)


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


def _start_copy_to_cpu(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)


def _finite(latents: Tensor, flipped: Tensor | None) -> list[bool]:
    finite = torch.isfinite(latents).flatten(1).all(dim=1)
    if flipped is not None:
        finite &= torch.isfinite(flipped).flatten(1).all(dim=1)
    return finite.tolist()
