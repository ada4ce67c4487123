"""What all samples share is found below the tolerance of each, and rounding passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dcae_cache.verify.aggregate import LEAST_SAMPLES, Differences, judge, limits_for

CHANNELS = 8


def judged(change: Callable[[Tensor], Tensor], dtype: str = "bf16", count: int = 64) -> list[str]:
    """What is said of ``count`` samples that are changed and rounded, beside fresh ones that are only rounded."""
    random, sums = torch.Generator().manual_seed(0), Differences()
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    noise = 0.01 if dtype == "bf16" else 0.0005
    for _ in range(count):
        right = torch.randn(CHANNELS, 8, 8, generator=random)
        elsewhere = change(right) + noise * torch.randn(right.shape, generator=random)  # another GPU's rounding
        sums.add(elsewhere.to(kind), right.to(kind))
    found = sums.aggregate()
    return [] if found is None else list(judge(found, limits_for(dtype, dtype)))


def offset(amount: float) -> Callable[[Tensor], Tensor]:
    shift = torch.zeros(CHANNELS, 1, 1)
    shift[3] = amount
    return lambda x: x + shift


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_rounding_of_another_machine_passes(dtype: str) -> None:
    assert judged(lambda x: x, dtype) == []


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_gain_of_three_thousandths_is_found(dtype: str) -> None:
    said = judged(lambda x: 1.003 * x, dtype)[0]
    assert said.startswith("are 1.003")
    assert "99.9% confidence over 64 samples" in said


def test_an_offset_of_one_channel_is_named() -> None:
    (said,) = judged(offset(0.05))
    assert "in channel 3: in channel 3 by +0.05" in said


def test_noise_is_found() -> None:
    random = torch.Generator().manual_seed(1)
    (said,) = judged(lambda x: x + 0.05 * torch.randn(x.shape, generator=random))
    assert "on average over 64 samples" in said


def test_too_few_samples_say_nothing() -> None:
    assert judged(lambda x: 1.003 * x, count=LEAST_SAMPLES - 1) == []
