"""From pixels to stored latents: the one place that knows range, dtype and scale.

    pixels       uint8 [N, H, W, 3] sRGB, on the CPU           one block of memory, seen as [N, 3, H, W]
    -> network   compute dtype [N, 3, H, W] in [-1, 1]         x / 127.5 - 1
    -> raw       compute dtype [N, c, H/f, W/f]                what the published encoder gives
    -> latents   stored dtype  [N, c, H/f, W/f], on the CPU    raw * scaling_factor, multiplied in fp32

Knows nothing of files, keys or parts.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compute.devices import TORCH_DTYPES, describe_device, device_errors
from ..compute.exact import exact_math
from ..compute.graphs import graphs_of
from ..compute.idle import IdleClock
from ..compute.lanes import Lanes
from ..compute.memory import free_bytes, is_out_of_memory
from ..compute.pieces import Pieces, few_sizes
from ..compute.ranges import to_unit
from ..compute.transfers import Mark, transfers_of
from ..errors import NoMemoryError
from ..records import Bucket, DtypeName
from .activations import automatic_batches
from .dcae import DCAE
from .latent_pieces import Fault, Piece, join, padded, sent, without_memory

MAX_MAGNITUDE = 1000.0  # of a scaled latent; beyond it something overflowed or the weights are broken


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Latents [N, c, h, w] as stored, on the CPU, and those of the mirrored images if asked for.

    ``faults``: per image None, or why its latent is not to be used: "not_finite" (NaN or Inf), "out_of_range" (a value
    beyond MAX_MAGNITUDE), both in fp32 too, or "no_memory" (the device could not encode this image even by itself).
    ``redone``: the images, by number, that were encoded again in fp32. ``magnitudes``: per image the largest value
    without its sign, as stored; NaN or inf where it isn't finite.
    """

    latents: Tensor
    mirrored: Tensor | None
    faults: Sequence[Fault | None]
    redone: Sequence[int] = ()
    magnitudes: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class _Queued:
    """A batch's pieces, and where the device's work on them begins and ends."""

    pieces: Sequence[Piece]
    begin: Mark
    end: Mark
    lane: int  # the thread that queued it: each of a CPU's streams is one


class LatentEncoder:
    """Encodes batches of uint8 pixels. ``launch`` queues work on the device, ``PendingBatch.result`` waits for it.

    ``scaling_factor`` multiplies the raw latents; ``dtype`` is the stored one; ``flip`` also encodes mirrored images.
    On a CPU up to ``streams`` batches are encoded at once, each on one core: sums then don't depend on how many cores
    there are, and latents come out the same bytes in 1 process or 8. Leave the ``with`` block to end its threads.
    ``batch_size`` tells of each size of image how many are in a full batch; by default what suits the device.
    Elsewhere than on a CPU larger batches are cut to that, and smaller ones padded to 1, 2, 4, ... images, so that the
    device's libraries plan for few sizes.

    ``prepare`` may be called by another thread, ahead of ``launch``: one copy, into memory that the device reads fast.
    ``kernels``: what the autoencoder uses; with Triton's the work on small batches is recorded, in ``graphs``; None:
    none is.

    Whatever the device raises comes out as ModelError. ``notify`` hears of memory that ran out, on any thread.
    """

    def __init__(
        self,
        autoencoder: DCAE,
        dtype: DtypeName,
        scaling_factor: float,
        flip: bool,
        streams: int = 1,
        batch_size: Callable[[Bucket], int] | None = None,
    ) -> None:
        self._autoencoder = autoencoder
        self._dtype = TORCH_DTYPES[dtype]
        self._scaling_factor = scaling_factor
        self._flip = flip
        self._fp32: DCAE | None = None
        self._fp32_lock = threading.Lock()
        self.device = autoencoder.device
        self.batch_size = batch_size or automatic_batches(
            self.device, autoencoder.checkpoint.spec, "encoder", autoencoder.dtype, free_bytes(self.device)
        )
        self.notify: Callable[[str], None] = lambda text: None
        self.streams = streams if self.device.type == "cpu" else 1
        self._transfers = transfers_of(self.device)
        self._pieces = Pieces(self.device, sizes=self._sizes, halved=self._tell_halved)
        self.kernels = autoencoder.kernels
        self.graphs = graphs_of(self.device, self._tell) if self.kernels == "triton" else None
        self._told: set[Hashable] = set()
        self.idle = IdleClock()
        self._lanes = Lanes(self.device, streams, "encode")

    def __enter__(self) -> LatentEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lanes.__exit__(kind, error, trace)

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Images of one size, uint8 [H, W, 3] each, side by side: [N, 3, H, W], for ``launch``."""
        with device_errors(self.device, "encoding"):
            pixels = self._transfers.host_memory((len(images), *images[0].shape), torch.uint8)
        np.stack(images, out=pixels.numpy())
        return pixels.permute(0, 3, 1, 2)

    def launch(self, images: Sequence[NDArray[np.uint8]] | Tensor) -> PendingBatch:
        """Start encoding images, as ``prepare`` takes or gives them, and return before the work is done."""
        pixels = images if isinstance(images, Tensor) else self.prepare(images)
        return PendingBatch(self, pixels, self._start(pixels))

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> EncodedBatch:
        """``launch`` and wait."""
        return self.launch(images).result()

    def _start(self, pixels: Tensor, in_fp32: bool = False) -> Future[_Queued]:
        """Queue a batch: on a CPU for a thread of the encoder's own, else on the device."""
        return self._lanes.start(partial(self._queue, pixels, in_fp32))

    def _queue(self, pixels: Tensor, in_fp32: bool) -> _Queued:
        kind = (pixels.shape[1:], in_fp32)
        with exact_math(self.device), device_errors(self.device, "encoding"):
            begin = self._transfers.mark()
            work, misfit = partial(self._piece, pixels, in_fp32), partial(self._misfit, pixels, in_fp32)
            pieces = self._pieces.run(len(pixels), kind, work, misfit)
            return _Queued(pieces, begin, self._transfers.mark(), threading.get_ident())

    def _piece(self, pixels: Tensor, in_fp32: bool, rows: slice, size: int) -> Piece:
        """Encode those rows, as ``size`` images: copies of the last one pad them, and are dropped again."""
        autoencoder = self._in_fp32() if in_fp32 else self._autoencoder
        there, work = padded(self._transfers.to_device(pixels[rows]), size), partial(self._encode, autoencoder)
        graphs = self.graphs
        latents, mirrored = work(there) if graphs is None else graphs.run(work, there, may_record=not in_fp32)
        return sent(self._transfers, latents, mirrored, len(pixels[rows]))

    def _encode(self, autoencoder: DCAE, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pixels uint8 [N, 3, H, W] on the device to latents as stored, still there, and those of mirrored images."""
        unit = to_unit(pixels).to(autoencoder.dtype)
        latents = self._stored(autoencoder.encode(unit))
        mirrored = self._stored(autoencoder.encode(unit.flip(3))) if self._flip else None
        return latents, mirrored

    def _stored(self, raw: Tensor) -> Tensor:
        return raw.to(torch.float32).mul(self._scaling_factor).to(self._dtype)

    def _misfit(self, pixels: Tensor, in_fp32: bool, rows: slice, reason: str) -> Piece:
        """Stand in for one image that the device has no memory for. Raises NoMemoryError where it has none for a small
        image either: then it isn't this image's size, and every other one would go the same way."""
        _, height, width = pixels.shape[1:]
        ratio = self._autoencoder.spatial_compression_ratio
        try:
            self._piece(torch.zeros(1, 3, 2 * ratio, 2 * ratio, dtype=torch.uint8), in_fp32, slice(0, 1), 1)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise NoMemoryError(
                f"{describe_device(self.device)} has no memory to encode one image of {height}x{width} pixels, nor a "
                f"small one ({reason}). Choose a lower `resolution`, a half `dtype`, or another `device`."
            ) from error
        if (height, width) not in self._told:
            self._told.add((height, width))
            self.notify(
                f"{describe_device(self.device)} has no memory for one image of {height}x{width} pixels: such images "
                "are skipped (no_memory)."
            )
        shape = self._autoencoder.latent_channels, height // ratio, width // ratio
        return without_memory(shape, self._dtype, self._flip)

    def _in_fp32(self) -> DCAE:
        with self._fp32_lock:
            if self._fp32 is None:
                here = self._autoencoder
                self._fp32 = DCAE(
                    here.checkpoint,
                    self.device,
                    torch.float32,
                    with_decoder=False,
                    latent_channels=here.latent_channels,
                )
            return self._fp32

    def _sizes(self, kind: Hashable, wanted: int, most: int | None) -> int:
        if not self._transfers.plans_by_size:
            return wanted
        assert isinstance(kind, tuple)
        (_, height, width), _ = kind
        full = self.batch_size(Bucket(height, width))
        return few_sizes(wanted, full if most is None else min(full, most))

    def _tell(self, text: str) -> None:
        self.notify(text)

    def _tell_halved(self, kind: Hashable, count: int) -> None:
        assert isinstance(kind, tuple)
        (_, height, width), in_fp32 = kind
        which = " encoded again in fp32" if in_fp32 else ""
        self.notify(
            f"{self.device} ran out of memory: images of {height}x{width} pixels{which} now go {count} at once."
        )

    def _gather(self, queued: _Queued) -> EncodedBatch:
        """Wait for the copies of all pieces, and only then look at them: before, their memory holds anything."""
        with device_errors(self.device, "encoding"):
            queued.end.wait()
            self.idle.add(queued.begin, queued.end, queued.lane)
        latents, mirrored, magnitudes = join(queued.pieces)
        lacking = [piece.fault for piece in queued.pieces for _ in range(len(piece.latents))]
        faults = [fault or _fault_of(magnitude) for fault, magnitude in zip(lacking, magnitudes, strict=True)]
        return EncodedBatch(latents, mirrored, faults, magnitudes=magnitudes)

    def _mend(self, pixels: Tensor, batch: EncodedBatch) -> EncodedBatch:
        """Encode those images again in fp32 whose latents overflowed in half precision, and no others."""
        numbers = [i for i, fault in enumerate(batch.faults) if fault in ("not_finite", "out_of_range")]
        if not numbers:
            return batch
        again = self._gather(self._start(pixels[numbers], in_fp32=True).result())
        latents, mirrored = batch.latents.clone(), batch.mirrored
        faults, magnitudes = list(batch.faults), list(batch.magnitudes)
        latents[numbers] = again.latents
        if mirrored is not None and again.mirrored is not None:
            mirrored = mirrored.clone()
            mirrored[numbers] = again.mirrored
        for number, fault, magnitude in zip(numbers, again.faults, again.magnitudes, strict=True):
            faults[number], magnitudes[number] = fault, magnitude
        return EncodedBatch(latents, mirrored, faults, numbers, magnitudes)


class PendingBatch:
    """A batch under way on the device."""

    def __init__(self, encoder: LatentEncoder, pixels: Tensor, queued: Future[_Queued]) -> None:
        self._encoder, self._pixels, self._queued = encoder, pixels, queued

    def result(self) -> EncodedBatch:
        """Wait for the latents. Images whose latents are NaN, Inf or out of range are encoded again in fp32; if that
        doesn't help they are marked."""
        encoder = self._encoder
        return encoder._mend(self._pixels, encoder._gather(self._queued.result()))


def _fault_of(magnitude: float) -> Fault | None:
    """Whether a latent is of numbers of a believable size: scaled ones have a std near 1."""
    if not math.isfinite(magnitude):
        return "not_finite"
    return "out_of_range" if magnitude > MAX_MAGNITUDE else None
