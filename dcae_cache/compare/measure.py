"""An autoencoder there and back on the same pixels: time, memory, sizes. Knows nothing of caches, files or scores."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compute.memory import PeakMemory
from ..errors import ModelError, TensorError
from ..models.autoencoder import Autoencoder


@dataclass(frozen=True, slots=True)
class Measurement:
    """A batch there and back. Seconds and bytes are means for one image; ``peak_bytes`` is for the batch.

    ``peak_bytes``: weights and everything else on the device at the peak. On the CPU it is the weights plus the growth
    of the process's resident memory, None where the system does not tell (see compute/memory.py).
    ``latent_bytes`` counts the autoencoder's ``bytes_per_number``; ``image_bytes`` are the 3*H*W of the image that
    the latent is of.
    """

    reconstruction: Tensor  # uint8 [N, 3, H, W], on the CPU
    latent_shape: tuple[int, int, int]  # c, h, w
    encode_seconds: float
    decode_seconds: float
    peak_bytes: int | None
    latent_bytes: int
    image_bytes: int

    @property
    def compression_ratio(self) -> float:
        """How many times smaller the latent is than the image."""
        return self.image_bytes / self.latent_bytes


def common_factor(factors: Sequence[int]) -> int:
    """The smallest side that every factor divides: their least common multiple."""
    return math.lcm(*factors)


def crop_alike(images: Tensor, factors: Sequence[int]) -> Tensor:
    """Centre-crop images [..., H, W] so that all ``factors`` divide both sides; a view of them.

    All autoencoders of a comparison get these same pixels: none pads, none sees a margin that another one doesn't.
    Raises TensorError for images smaller than the common factor.
    """
    step = common_factor(factors)
    height, width = images.shape[-2:]
    tall, wide = height // step * step, width // step * step
    if not tall or not wide:
        raise TensorError(
            f"the image is {height}x{width} pixels, smaller than {step}x{step}, the smallest that the factors "
            f"{', '.join(map(str, sorted(set(factors))))} all divide"
        )
    return _centre(images, tall, wide)


def _centre(images: Tensor, tall: int, wide: int) -> Tensor:
    top, left = (images.shape[-2] - tall) // 2, (images.shape[-1] - wide) // 2
    return images[..., top : top + tall, left : left + wide]


def warm_up(autoencoder: Autoencoder, images: Tensor) -> None:
    """The first image there and back, not counted: libraries choose and load their kernels on first use."""
    autoencoder.decode(autoencoder.encode(images[:1]))


def measure(
    autoencoder: Autoencoder, images: Tensor, *, warm: bool = False, stored: Tensor | None = None
) -> Measurement:
    """Images uint8 [N, 3, H, W] there and back, timed. One image goes ahead uncounted unless ``warm``.

    ``stored``: raw latents to decode in place of the fresh ones, of these images or of larger ones that these were
    cropped from by ``crop_alike``: the reconstruction is cropped likewise. Times include the copies to and from the
    device; on CUDA both ends are waited for. Raises what ``encode`` does.
    """
    if not warm:
        warm_up(autoencoder, images)
    with PeakMemory(autoencoder.device) as peak:
        start = _now(autoencoder.device)
        latents = autoencoder.encode(images)
        middle = _now(autoencoder.device)
        latents = latents if stored is None else stored
        reconstruction = autoencoder.decode(latents)
        end = _now(autoencoder.device)
    count, _, height, width = reconstruction.shape
    if stored is not None:
        reconstruction = _centre(reconstruction, *images.shape[2:])
    if reconstruction.shape != images.shape:
        raise ModelError(
            f"{autoencoder.name} makes {list(reconstruction.shape)} of images {list(images.shape)}: not the same size"
        )
    peak_bytes = peak.num_bytes
    if peak_bytes is not None and autoencoder.device.type == "cpu":
        peak_bytes += autoencoder.num_weight_bytes
    channels, rows, columns = latents.shape[1:]
    num_bytes = latents[0].numel() * autoencoder.bytes_per_number
    return Measurement(
        reconstruction,
        (channels, rows, columns),
        (middle - start) / count,
        (end - middle) / count,
        peak_bytes,
        num_bytes,
        3 * height * width,
    )


def _now(device: torch.device) -> float:
    """The time once the device has done all it was given, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
