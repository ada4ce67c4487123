"""Copies to and from a device, and marks in its stream of work to wait for and to measure by.

On CUDA a copy to the host is under way when the call returns: its target holds nothing yet, or what was there before,
until a mark made later has been waited for. Knows nothing of what is copied.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .memory import is_out_of_memory


class Mark(Protocol):
    """A point in a device's work."""

    def wait(self) -> None:
        """Return when the device has got there."""

    def seconds_since(self, earlier: Mark) -> float:
        """Seconds of the device's time from an earlier mark of the same device to this one; both have been reached."""


class Transfers:
    """Of a device that is done with its work when a call returns: the CPU, and those that copy in step (MPS)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def plans_by_size(self) -> bool:
        """Whether the device's libraries plan, or compile, their work anew for each batch size."""
        return self.device.type != "cpu"

    def host_memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A new tensor on the CPU, of whatever numbers, that ``to_device`` copies from fastest. On any thread."""
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor on the device."""
        return tensor.to(self.device)

    def to_host(self, tensor: Tensor) -> Tensor:
        """The tensor on the CPU; not to be read before a later mark has been waited for."""
        return tensor.cpu()

    def mark(self) -> Mark:
        """A mark behind all work given to the device so far."""
        return _Moment()


class CudaTransfers(Transfers):
    """Of a CUDA device: copies go from and to pinned memory, and overlap with the host's work.

    Pinned memory is slow to come by; torch keeps what is given back, and gives it out again when the copies from and
    to it are done, so that a run asks the driver for a few blocks and no more.
    """

    def host_memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A new tensor in pinned memory; in ordinary memory, where there is no more."""
        try:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return super().host_memory(shape, dtype)  # slower, and right

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, by a copy in its current stream."""
        return self._pinned(tensor).to(self.device, non_blocking=True)

    def to_host(self, tensor: Tensor) -> Tensor:
        """A tensor on the CPU that the copy is under way to."""
        return self.host_memory(tensor.shape, tensor.dtype).copy_(tensor, non_blocking=True)

    def mark(self) -> Mark:
        """An event in the device's current stream. Waiting for it sleeps: the cores are wanted for decoding."""
        return _Event(self.device)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.is_pinned() else self.host_memory(tensor.shape, tensor.dtype).copy_(tensor)


def transfers_of(device: torch.device) -> Transfers:
    """The transfers of that device."""
    return CudaTransfers(device) if device.type == "cuda" else Transfers(device)


class _Moment:
    def __init__(self) -> None:
        self.seconds = time.perf_counter()

    def wait(self) -> None:
        """Nothing to wait for."""

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Moment)
        return self.seconds - earlier.seconds


class _Event:
    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self.event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Event)
        return float(earlier.event.elapsed_time(self.event)) / 1000.0
