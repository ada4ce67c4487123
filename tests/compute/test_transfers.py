"""Where the host's side of a copy lies, with pinned memory stood in for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dcae_cache.compute.transfers import CudaTransfers, Transfers

CUDA0 = torch.device("cuda:0")


def pinning(patch: pytest.MonkeyPatch, error: Exception | None = None) -> list[tuple[int, ...]]:
    """From now on torch.empty notes what is pinned, or raises; the list collects the shapes."""
    real, pinned = torch.empty, list[tuple[int, ...]]()

    def empty(shape: tuple[int, ...], *, pin_memory: bool = False, **named: Any) -> torch.Tensor:
        if pin_memory:
            pinned.append(tuple(shape))
            if error is not None:
                raise error
        return real(shape, **named)

    patch.setattr(torch, "empty", empty)
    return pinned


def test_only_cuda_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = pinning(monkeypatch)
    assert Transfers(torch.device("cpu")).host_memory((2, 3), torch.uint8).shape == (2, 3)
    assert pinned == []
    assert CudaTransfers(CUDA0).host_memory((2, 3), torch.uint8).dtype == torch.uint8
    assert pinned == [(2, 3)]


def test_where_no_memory_can_be_pinned_ordinary_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = pinning(monkeypatch, RuntimeError("CUDA error: out of memory"))
    found = CudaTransfers(CUDA0)
    assert found.host_memory((2, 3), torch.uint8).shape == (2, 3)
    assert torch.equal(found.to_host(torch.ones(4)), torch.ones(4))
    assert pinned == [(2, 3), (4,)]


def test_a_device_that_failed_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinning(monkeypatch, RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    with pytest.raises(RuntimeError, match="ECC"):
        CudaTransfers(CUDA0).host_memory((2, 3), torch.uint8)
