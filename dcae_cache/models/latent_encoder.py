"""From pixels to stored latents: the one place that knows range, dtype and scale.

    pixels       uint8 [N, H, W, 3] sRGB, on the CPU
    -> network   compute dtype [N, 3, H, W] in [-1, 1]         x / 127.5 - 1
    -> raw       compute dtype [N, c, H/f, W/f]                what the published encoder gives
    -> latents   stored dtype  [N, c, H/f, W/f], on the CPU    raw * scaling_factor, multiplied in fp32

Knows nothing of files, keys or parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compute.devices import TORCH_DTYPES
from ..compute.ranges import to_unit
from ..errors import ModelError
from ..records import DtypeName
from .dcae import DCAE


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Latents [N, c, h, w] as stored, on the CPU, those of the mirrored images if asked for, and which are finite."""

    latents: Tensor
    mirrored: Tensor | None
    finite: Sequence[bool]


MAX_MAGNITUDE = 1000.0  # of a scaled latent; beyond it something overflowed or the weights are broken


class LatentEncoder:
    """Encodes batches of uint8 pixels. ``launch`` queues work on the device, ``PendingBatch.result`` waits for it.

    ``scaling_factor`` multiplies the raw latents; ``dtype`` is the stored one; ``flip`` also encodes mirrored images.
    On a CPU up to ``streams`` batches are encoded at once, each on one core: sums then don't depend on how many cores
    there are, and latents come out the same bytes in 1 process or 8. Leave the ``with`` block to end its threads.
    """

    def __init__(
        self, autoencoder: DCAE, dtype: DtypeName, scaling_factor: float, flip: bool, streams: int = 1
    ) -> None:
        self._autoencoder = autoencoder
        self._dtype = TORCH_DTYPES[dtype]
        self._scaling_factor = scaling_factor
        self._flip = flip
        self._fp32: DCAE | None = None
        self._fitting: dict[torch.Size, int] = {}  # image shape -> images at a time, where memory ran out
        self.device = autoencoder.device
        self.notify: Callable[[str], None] = lambda text: None
        self.streams = streams if self.device.type == "cpu" else 1
        self._threads_before = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        if self.device.type == "cpu":
            self._pool = ThreadPoolExecutor(streams, "encode", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> LatentEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads_before)

    def launch(self, images: Sequence[NDArray[np.uint8]]) -> PendingBatch:
        """Start encoding images of one size, uint8 [H, W, 3] each, and return before the work is done."""
        pixels = torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in images]))
        if self._pool is not None:
            return PendingBatch(self, pixels, self._pool.submit(self._encode_what_fits, pixels))
        done: Future[tuple[Tensor, Tensor | None]] = Future()
        done.set_result(self._encode_what_fits(pixels))  # queued on the device, not done
        return PendingBatch(self, pixels, done)

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> EncodedBatch:
        """``launch`` and wait."""
        return self.launch(images).result()

    def _encode_what_fits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode in as few pieces as memory allows: half as many images each time it runs out."""
        shape = pixels.shape[1:]
        while True:
            count = min(self._fitting.get(shape, len(pixels)), len(pixels))
            try:
                pieces = [self._encode(self._autoencoder, piece) for piece in torch.split(pixels, count)]
                break
            except torch.OutOfMemoryError as error:
                if count == 1:
                    raise ModelError(
                        f"{self.device} has no memory to encode one image of {shape[1]}x{shape[2]} pixels. Choose a "
                        "lower --resolution, a half --dtype, or another --device."
                    ) from error
                self._fitting[shape] = count // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.notify(
                f"{self.device} ran out of memory: images of {shape[1]}x{shape[2]} pixels now go {count // 2} at once."
            )
        if len(pieces) == 1:
            return pieces[0]
        mirrored = [flipped for _, flipped in pieces if flipped is not None]
        return torch.cat([plain for plain, _ in pieces]), torch.cat(mirrored) if mirrored else None

    def retry_in_fp32(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode again with fp32 weights and arithmetic: for batches that overflowed in half precision."""
        if self._fp32 is None:
            self._fp32 = DCAE(self._autoencoder.checkpoint, self.device, torch.float32, with_decoder=False)
        return self._encode(self._fp32, pixels)

    def _encode(self, autoencoder: DCAE, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        source = pixels.pin_memory() if self.device.type == "cuda" else pixels
        unit = to_unit(source.to(self.device, non_blocking=True)).to(autoencoder.dtype)
        latents = self._stored(autoencoder.encode(unit))
        mirrored = self._stored(autoencoder.encode(unit.flip(3))) if self._flip else None
        return latents, mirrored

    def _stored(self, raw: Tensor) -> Tensor:
        scaled = raw.to(torch.float32).mul(self._scaling_factor).to(self._dtype)
        return _start_copy_to_cpu(scaled.contiguous())


class PendingBatch:
    """A batch under way on the device."""

    def __init__(self, encoder: LatentEncoder, pixels: Tensor, latents: Future[tuple[Tensor, Tensor | None]]) -> None:
        self._encoder, self._pixels, self._latents = encoder, pixels, latents
        self._event: torch.cuda.Event | None = None
        if encoder.device.type == "cuda":
            self._event = torch.cuda.current_stream(encoder.device).record_event()

    def result(self) -> EncodedBatch:
        """Wait for the latents. A batch with NaN or Inf is encoded again in fp32; what isn't finite then is marked."""
        if self._event is not None:
            self._event.synchronize()
        latents, mirrored = self._latents.result()
        finite = _finite(latents, mirrored)
        if not all(finite):
            latents, mirrored = self._encoder.retry_in_fp32(self._pixels)
            if self._event is not None:
                torch.cuda.synchronize(self._encoder.device)
            finite = _finite(latents, mirrored)
        return EncodedBatch(latents, mirrored, finite)


def _start_copy_to_cpu(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)


def _finite(latents: Tensor, mirrored: Tensor | None) -> list[bool]:
    """Which latents are numbers of a believable size: scaled ones have a std near 1."""
    good = (latents.abs().flatten(1) <= MAX_MAGNITUDE).all(dim=1)  # False for NaN, too
    if mirrored is not None:
        good &= (mirrored.abs().flatten(1) <= MAX_MAGNITUDE).all(dim=1)
    return good.tolist()
