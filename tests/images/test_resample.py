"""The Lanczos resample: against its definition, against Pillow, and exact arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dcae_cache.images import resample
from dcae_cache.images.resample import lanczos
from helpers.pictures import clouds, ideal, noise, patches, rms

LANCZOS = Image.Resampling.LANCZOS


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 70), st.integers(1, 70), st.data())
def test_lanczos_is_the_ideal_one(height: int, width: int, rows: int, columns: int, data: st.DataObject) -> None:
    left, right = sorted(data.draw(st.tuples(*[st.floats(0, width)] * 2)))
    top, bottom = sorted(data.draw(st.tuples(*[st.floats(0, height)] * 2)))
    if right - left < 0.5 or bottom - top < 0.5:
        left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    pixels, box = noise(height, width), (left, top, right, bottom)
    ours = lanczos(Image.fromarray(pixels), (rows, columns), box)
    assert np.abs(ours.astype(np.int16) - ideal(pixels, (rows, columns), box)).max() <= 1


@pytest.mark.parametrize("shape", [(301, 400), (400, 301)])
def test_lanczos_is_pillows(shape: tuple[int, int]) -> None:
    # Not on noise: there it shows where Pillow clips between the passes, and their order changed in Pillow 13.
    for picture in (patches, clouds):
        image = Image.fromarray(picture(*shape))
        for size in ((100, 128), (256, 256), (500, 300)):
            box = (3.25, 1.5, shape[1] - 2.0, shape[0] - 0.75)
            theirs = np.asarray(image.resize(size[::-1], LANCZOS, box=box))
            assert rms(lanczos(image, size, box), theirs) < 0.8


@given(st.integers(1, 5000), st.integers(1, 2000), st.floats(0, 1), st.floats(0, 1))
def test_every_sum_of_a_resample_fits_float32(length: int, outputs: int, a: float, b: float) -> None:
    start, stop = sorted((a * length, b * length))
    if stop - start < 1e-3:
        start, stop = 0.0, float(length)
    weights = resample._made_weights(length, start, stop, outputs, 2.0**13)
    sums = [np.abs(block).sum(axis=1).max() / 2**13 for block in weights.blocks]
    assert all(np.array_equal(block.sum(axis=1), np.full(len(block), 2**13)) for block in weights.blocks)
    # Up to 255 levels in quarters after the first pass, times the weights of the second.
    assert 255 * 4 * max(sums) * 2**13 < 2**24


def test_lanczos_is_exact_arithmetic_however_it_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(noise(301, 407))
    size, box = (120, 97), (3.3, 1.7, 399.9, 300.2)
    columns = resample._weights(407, 3.3, 399.9, 97, 4.0)
    rows = resample._weights(301, 1.7, 300.2, 120, 0.25)

    def dense(weights: Any, length: int, scale: float) -> NDArray[np.int64]:
        out = np.zeros((weights.num_outputs, length))
        for number, (first, block) in enumerate(zip(weights.firsts, weights.blocks, strict=True)):
            out[number * 16 : number * 16 + len(block), first : first + weights.taps] = block * scale
        return out.astype(np.int64)

    source = np.asarray(image).astype(np.int64).transpose(2, 0, 1)
    quarters = np.clip(np.rint(source @ dense(columns, 407, 2**11).T / 2**11), 0, 1020).astype(np.int64)
    expected = np.clip((dense(rows, 301, 2**15) @ quarters + 2**14) >> 15, 0, 255).transpose(1, 2, 0)
    assert np.array_equal(lanczos(image, size, box), expected)
    for name, value in (("_MAX_PRODUCT", 1000), ("_MAX_STRIP", 5000), ("_MAX_SCRATCH", 10)):
        monkeypatch.setattr(resample, name, value)
        assert np.array_equal(lanczos(image, size, box), expected)
