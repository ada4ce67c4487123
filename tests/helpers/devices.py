"""Devices that are not here, stood in for on the CPU: one whose copies finish late, one that is short of memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dcae_cache.compute.graphs import Graphs, Results, Work
from dcae_cache.compute.lanes import Lanes
from dcae_cache.compute.transfers import Mark, Transfers
from dcae_cache.models import latent_encoder, zoo
from dcae_cache.models.dcae import DCAE
from dcae_cache.models.latent_encoder import LatentEncoder

Order = Literal["oldest first", "newest first", "only what is waited for"]


class LateTransfers(Transfers):
    """As CUDA copies to the host: a copy is only queued, and done when a later mark is waited for; a block of host
    memory that nothing refers to any more is given out again as it is, with the old numbers in it or those of a copy
    that is still to come.

    ``order``: of the copies that a wait has done, which is what a device with several copy engines may choose.
    """

    def __init__(self, order: Order) -> None:
        super().__init__(torch.device("cpu"))
        self.order = order
        self._queued: list[tuple[int, Tensor, Tensor]] = []
        self._marks = 0
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    @property
    def plans_by_size(self) -> bool:
        return True

    def to_host(self, tensor: Tensor) -> Tensor:
        free = self._free.setdefault((tensor.shape, tensor.dtype), [])
        block = free.pop() if free else torch.full_like(tensor, 0.125)
        self._queued.append((self._marks, block, tensor.clone()))
        given = block.view_as(block)
        weakref.finalize(given, free.append, block)
        return given

    def mark(self) -> Mark:
        self._marks += 1
        return _LateMark(self, self._marks)

    def arrive(self, mark: int) -> None:
        """Do the copies that were queued before that mark; the later ones too, unless only these are to be done."""
        whole = self.order != "only what is waited for"
        due = [item for item in self._queued if whole or item[0] < mark]
        self._queued = [] if whole else [item for item in self._queued if item[0] >= mark]
        for _, target, source in due if self.order == "oldest first" else reversed(due):
            target.copy_(source)


class _LateMark:
    def __init__(self, device: LateTransfers, number: int) -> None:
        self._device, self._number = device, number

    def wait(self) -> None:
        self._device.arrive(self._number)

    def seconds_since(self, earlier: Mark) -> float:
        return 0.0


def on_late_device(patch: pytest.MonkeyPatch, order: Order = "only what is waited for") -> LateTransfers:
    """From now on LatentEncoders work as on CUDA: on the calling thread, with late copies and few batch sizes."""
    device = LateTransfers(order)
    made = LatentEncoder.__init__

    def on_calling_thread(self: LatentEncoder, *rest: object, **named: object) -> None:
        made(self, *rest, **named)  # type: ignore[arg-type]
        self._lanes.__exit__(None, None, None)
        self._lanes = Lanes(torch.device("meta"), 1)
        self.streams = 1

    patch.setattr(latent_encoder, "transfers_of", lambda _: device)
    patch.setattr(LatentEncoder, "__init__", on_calling_thread)
    return device


class ReplayedWork:
    """As a CUDA graph: input and results lie in the same memory each time, and a replay writes over both."""

    def __init__(self, work: Work, given: Tensor) -> None:
        self._work, self._given = work, given.clone()
        self._results = work(self._given)

    def replay(self, given: Tensor) -> Results:
        self._given.copy_(given)
        for ours, fresh in zip(self._results, self._work(self._given), strict=True):
            if ours is not None and fresh is not None:
                ours.copy_(fresh)
        return self._results


def with_graphs(patch: pytest.MonkeyPatch, record: Callable[[Work, Tensor], ReplayedWork] = ReplayedWork) -> None:
    """From now on LatentEncoders of autoencoders with kernels record their work, as on CUDA."""
    patch.setattr(latent_encoder, "graphs_of", lambda device, tell: Graphs(device, record, tell))


class StandIn:
    """A quick autoencoder in place of a DCAE: a latent is the mean colour of each cell, whatever else is in the batch.

    ``fits``: whether the device has memory for a batch in a dtype. ``overflows``: which of a batch come out as NaN in
    fp16. ``given`` collects how many images each call got.
    """

    device = torch.device("cpu")
    spatial_compression_ratio = 32
    latent_channels = 3
    name = "stand-in"
    kernels = "eager"

    def __init__(
        self,
        dtype: torch.dtype = torch.float16,
        fits: Callable[[Tensor], bool] = lambda pixels: True,
        overflows: Callable[[Tensor], slice] = lambda pixels: slice(0, 0),
        error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ) -> None:
        self.dtype, self.fits, self.overflows, self.error = dtype, fits, overflows, error
        self.checkpoint = SimpleNamespace(spec=zoo.get("f32c32-tiny").spec)
        self.given: list[int] = []

    def encode(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == self.dtype
        self.given.append(len(pixels))
        if not self.fits(pixels):
            raise self.error()
        latents = avg_pool2d(pixels.float(), 32).to(self.dtype)
        if self.dtype == torch.float16:
            latents[self.overflows(pixels)] = float("nan")
        return latents

    def in_fp32(self, patch: pytest.MonkeyPatch) -> StandIn:
        """The one that the encoder takes when it encodes again."""
        other = StandIn(torch.float32, self.fits, error=self.error)
        patch.setattr(latent_encoder, "DCAE", lambda *rest, **named: other)
        return other


def short_of_memory(
    patch: pytest.MonkeyPatch,
    fits: Callable[[DCAE, Tensor], bool],
    error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
) -> list[int]:
    """From now on DCAE.encode raises unless the batch fits; the list collects how many images it was given."""
    real, given = DCAE.encode, []

    def encode(self: DCAE, pixels: Tensor) -> Tensor:
        given.append(len(pixels))
        if not fits(self, pixels):
            raise error()
        return real(self, pixels)

    patch.setattr(DCAE, "encode", encode)
    return given


def random_images(count: int, height: int = 64, width: int = 64, first: int = 0) -> list[NDArray[np.uint8]]:
    """Images uint8 [H, W, 3], all different."""
    return [
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for seed in range(first, first + count)
    ]


def chunks(items: list[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    """The items in batches."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
