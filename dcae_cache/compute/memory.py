"""Memory of a device: how much work took at its peak, how much is free, and which errors say that there was none left.
Knows nothing of what the work is.

The peak on CUDA: the most that torch's allocator held, everything that was there before included, as
``max_memory_allocated`` counts it. CPU, on Linux: by how much the process's resident memory grew, read every few
milliseconds. Elsewhere: None.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from ..errors import NoMemoryError

_STATM = Path("/proc/self/statm")
_INTERVAL = 0.002  # seconds


class PeakMemory:
    """``with PeakMemory(device) as peak: work()``; then ``peak.num_bytes``, or None where it can't be known."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.num_bytes: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu" and _STATM.exists():
            _give_back_freed()
            self._before = self._highest = _resident()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.num_bytes = torch.cuda.max_memory_allocated(self._device)
        elif self._thread is not None:
            self._stop.set()
            self._thread.join()
            self.num_bytes = max(self._highest, _resident()) - self._before

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._highest = max(self._highest, _resident())


def _resident() -> int:
    return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _give_back_freed() -> None:
    """Have glibc return what was freed: memory that is used again would not show as growth."""
    with suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> None:
    """Let go of a model that nothing refers to any more, before the next one is opened."""
    gc.collect()
    if torch.cuda.is_available():
        release_cached(torch.device("cuda"))


def release_cached(device: torch.device) -> None:
    """Give back what the device's allocator keeps for later: in other sizes it may be of use. Never raises: a device
    that has failed says so at the next piece of work."""
    with suppress(RuntimeError, AttributeError):
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type != "cpu":
            torch.get_device_module(device).empty_cache()


def free_bytes(device: torch.device) -> int | None:
    """Bytes that new work may take on a CUDA device now, those that torch keeps for later included; elsewhere None."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


# How libraries say in a plain RuntimeError that memory ran out. PyTorch tries one of cuDNN's engines after the other
# and tells of the last one only, so that memory comes out as "unable to find an engine" (aten/src/ATen/native/cudnn/
# Conv_v8.cpp); a device that has no such engine at all is found out before any work (see models.preflight).
_NO_MEMORY = (
    "out of memory",  # CUDA, also of pinned host memory; HIP, XPU, MPS
    "unable to find an engine",
    "cudnn_status_alloc_failed",
    "cudnn_status_not_supported",
    "cudnn_status_internal_error_device_allocation_failed",
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cudaerrormemoryallocation",
    "insufficient memory",  # MPS, by Metal
    "out_of_device_memory",  # XPU, by Level Zero
    "out_of_host_memory",
    "can't allocate memory",  # the CPU
    "not enough memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host had no memory left, in any of the ways that is said."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, NoMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
