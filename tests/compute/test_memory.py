"""Out of memory in every dress is known as such, and nothing else is."""

from __future__ import annotations

import pytest
import torch

from dcae_cache.compute.memory import free_bytes, is_out_of_memory, release_cached
from dcae_cache.errors import ModelError, NoMemoryError

NO_MEMORY: tuple[Exception, ...] = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 17.60 GB, other allocations: 1.01 GB, max allowed: 18.13 GB)"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate"
    ),
    MemoryError(),
    NoMemoryError("cuda:0 has no memory"),
)
OTHERS: tuple[Exception, ...] = (
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ValueError("out of memory"),
    ModelError("no such model"),
)


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:40])
def test_memory_that_ran_out_is_known_in_every_dress(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_giving_memory_back_raises_on_no_device() -> None:
    for name in ("cpu", "cuda", "mps", "xpu", "meta"):
        release_cached(torch.device(name))


def test_only_cuda_says_how_much_is_free() -> None:
    assert free_bytes(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_card_that_is_full_says_so_and_counts_what_is_free() -> None:
    device = torch.device("cuda:0")
    free = free_bytes(device)
    assert free is not None
    block = torch.empty(free // 2, dtype=torch.uint8, device=device)
    left = free_bytes(device)
    assert left is not None
    assert left <= free - block.numel() + 2**26
    with pytest.raises(RuntimeError) as raised:
        torch.empty(free, dtype=torch.uint8, device=device)
    assert is_out_of_memory(raised.value)
    del block
    release_cached(device)
