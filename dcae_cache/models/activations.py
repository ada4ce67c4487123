"""How much memory an autoencoder's activations take, so that automatic batches fit: measured, without a device.

The figures are the peak of all tensors alive at once, for one pixel of the image, found by running each network on
fake tensors, with RMS norm as one kernel (torch from 2.9 on has one for CUDA; before, its steps take about twice as
much). They grow with the number of pixels alone, batch included. Workspaces of convolutions come on top.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..compute.devices import auto_batch_size
from ..records import Bucket
from . import zoo
from .layouts import Half
from .network import DCAENetwork
from .spec import DCAESpec

_HAS_FUSED_NORM = hasattr(torch.backends, "fp32_precision")  # both came with torch 2.9

# name -> bytes per pixel in half precision, encoder and decoder; float32 takes twice as much
HALF_PRECISION: dict[str, tuple[float, float]] = {
    "f32c32-mix": (646.0, 576.13232421875),
    "f64c128-mix": (646.0, 576.0799560546875),
    "f128c512-mix": (646.0, 576.0668640136719),
    "f32c32-sana": (1286.0, 1152.0625),
    "f32c32-sana-lite": (1286.0, 576.0625),
    "f32c128-1.5": (646.0, 576.25),
    "f64c128-1.5": (646.0, 576.0625),
    "f32c32-tiny": (38.0, 72.0625),
}


def automatic_batches(
    device: torch.device, spec: DCAESpec, half: Half, dtype: torch.dtype, free: int | None = None
) -> Callable[[Bucket], int]:
    """How many images of each size to give a device at once: by their area, and on CUDA by what they take.

    ``free``: bytes that are free on the device with the weights on it; a batch takes four fifths of them at most.
    """
    need = bytes_per_pixel(spec, half, dtype) if device.type == "cuda" else None
    room = None if free is None else free * 4 // 5
    return lambda bucket: auto_batch_size(bucket, device.type, need, room)


def bytes_per_pixel(spec: DCAESpec, half: Half, dtype: torch.dtype) -> float:
    """Bytes of activations for each pixel of the images that one half takes or gives at once."""
    known = (figures for name, figures in HALF_PRECISION.items() if _same(zoo.get(name).spec, spec, half))
    figures = next(known, None)
    in_half = measure(spec, half) if figures is None else figures[half == "decoder"]
    return in_half * (dtype.itemsize / 2) * (1 if _HAS_FUSED_NORM else 2)


@cache
def measure(spec: DCAESpec, half: Half, dtype: torch.dtype = torch.bfloat16) -> float:
    """The figure for an architecture, found by running it on fake tensors: a few seconds."""
    from torch._subclasses import FakeTensorMode

    ratio = spec.spatial_compression_ratio
    side = 4 * ratio
    shape = (1, 3, side, side) if half == "encoder" else (1, spec.latent_channels, 4, 4)
    before = torch.get_default_dtype()
    with FakeTensorMode(), patch.object(F, "rms_norm", lambda rows, *_: torch.empty_like(rows)):
        try:
            torch.set_default_dtype(dtype)  # casting a network of fake tensors is not to be had
            network = DCAENetwork(spec, with_encoder=half == "encoder", with_decoder=half == "decoder")
        finally:
            torch.set_default_dtype(before)
        work = getattr(network.requires_grad_(False), half)
        peak = peak_bytes(work, torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last))
    return peak / side**2


def peak_bytes(work: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    """The most bytes that ``inputs`` and the tensors made during ``work`` take at once."""
    watch = _Watch(inputs)
    with watch, torch.no_grad():
        work(inputs)
    return watch.highest


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class has an untyped hook
    """Counts the storages that are alive, after each operation."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, int] = {}
        self.highest = 0
        self._note(inputs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, key, None)
        self.highest = max(self.highest, sum(self._alive.values()))


def _same(known: DCAESpec | None, spec: DCAESpec, half: Half) -> bool:
    return known is not None and getattr(known, half) == getattr(spec, half)
