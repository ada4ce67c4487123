"""How much memory a piece of work took at its peak. Knows nothing of what the work is.

CUDA: the most that torch's allocator held, everything that was there before included, as ``max_memory_allocated``
counts it. CPU, on Linux: by how much the process's resident memory grew, read every few milliseconds. Elsewhere: None.
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
        torch.cuda.empty_cache()


_NO_MEMORY = ("can't allocate memory", "not enough memory")  # how torch says it on the CPU, in a plain RuntimeError


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _NO_MEMORY)
