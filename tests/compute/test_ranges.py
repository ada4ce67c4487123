"""Pixels between uint8 and [-1, 1]."""

from __future__ import annotations

import pytest
import torch

from dcae_cache.compute.ranges import to_uint8, to_unit


def test_every_level_comes_back_and_the_images_stay() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    before = levels.clone()
    unit = to_unit(levels)
    assert unit.dtype == torch.float32
    assert (float(unit[0]), float(unit[-1])) == (-1.0, 1.0)
    assert torch.equal(unit, before.float() / 127.5 - 1)
    assert torch.equal(levels, before)
    assert torch.equal(to_uint8(unit), levels)


@pytest.mark.parametrize(("pixel", "level"), [(-1.7, 0), (3.0, 255), (-1 + 0.49 / 127.5, 0), (-1 + 0.51 / 127.5, 1)])
def test_back_means_clamped_and_rounded(pixel: float, level: int) -> None:
    assert int(to_uint8(torch.tensor([pixel], dtype=torch.float64))) == level
