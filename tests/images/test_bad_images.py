"""Bytes that are no good: each failure has its reason, and nothing else is ever raised."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcae_cache.errors import SampleSkipped
from dcae_cache.images.buckets import BucketRule
from dcae_cache.images.pixels import image_size, load_pixels
from dcae_cache.records import Pixels
from helpers.pictures import LIMIT, NATIVE, clouds, encoded, noise, png, reason, square, wide_gamut


def bomb(side: int) -> bytes:
    return png(side, side, 8, 2, b"")


def test_each_failure_has_its_reason() -> None:
    jpeg = encoded(noise(200, 200), "JPEG")
    assert reason(b"") == "empty"
    assert reason(b"a text that calls itself .jpg") == "not_an_image"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason(jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2)) == "truncated"  # a download into a preallocated file
    for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"):
        whole = encoded(noise(200, 200), kind)
        assert reason(whole[: len(whole) // 2]) in ("truncated", "corrupt"), kind
    assert reason(encoded(noise(4, 4)), BucketRule(kind="native", factor=8)) == "too_small"
    no_enlarging = BucketRule(kind="square", resolution=64, max_upscale=1.0)
    assert reason(encoded(noise(32, 32)), no_enlarging) == "upscale_limit"


def test_the_size_is_judged_before_anything_is_decoded(recwarn: pytest.WarningsRecorder) -> None:
    for data in (bomb(60_000), bomb(13_000)):  # the second one would make Pillow warn, the first one raise
        assert reason(data) == "too_many_pixels"
        with pytest.raises(SampleSkipped, match="too_many_pixels"):
            image_size(data, LIMIT)
    assert image_size(bomb(60_000), 10**10) == (60_000, 60_000)
    data = encoded(noise(10, 11))
    assert reason(data, max_pixels=109) == "too_many_pixels"
    assert load_pixels(data, NATIVE, 110).data.shape == (10, 11, 3)
    assert not recwarn.list


def seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture, srgb = clouds(24, 20), wide_gamut()
    return [
        encoded(picture, "JPEG", exif=exif, icc_profile=srgb),
        encoded(picture, "JPEG", progressive=True),
        encoded(Image.fromarray(picture).convert("CMYK"), "JPEG"),
        encoded(picture, "PNG", icc_profile=srgb, exif=exif),
        encoded(Image.fromarray(picture).quantize(20), "PNG", transparency=3),
        encoded(Image.fromarray(picture).convert("LA"), "PNG"),
        encoded(picture, "WEBP", exif=exif),
        encoded(picture, "WEBP", lossless=True, icc_profile=srgb),
        encoded(picture, "AVIF", exif=exif),
        encoded(picture, "BMP"),
        encoded(picture, "TIFF", compression="tiff_lzw"),
        encoded(picture, "TIFF", exif=exif),
        encoded(Image.fromarray(picture), "GIF", save_all=True, append_images=[Image.new("RGB", (20, 24))]),
    ]


SEEDS = seeds()


REASONS = {"empty", "not_an_image", "unsupported", "truncated", "corrupt", "too_many_pixels"}


FUZZ_RULE = BucketRule(kind="square", resolution=32)


def only_skipped(data: bytes) -> None:
    try:
        size = image_size(data, 10**6)
    except SampleSkipped:
        size = None
    try:
        pixels = load_pixels(data, FUZZ_RULE, 10**6)
    except SampleSkipped as skipped:
        if skipped.reason not in REASONS:
            raise
        return
    assert pixels.data.shape == (32, 32, 3)
    assert size is not None


@given(st.sampled_from(SEEDS), st.data())
@settings(max_examples=250)
def test_damaged_bytes_raise_nothing_but_sample_skipped(seed: bytes, data: st.DataObject) -> None:
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 8))):
        changed[data.draw(st.integers(0, min(len(seed) - 1, 600)))] = data.draw(st.integers(0, 255))
    only_skipped(bytes(changed[: data.draw(st.integers(0, len(seed)))] if data.draw(st.booleans()) else changed))


@given(st.sampled_from([seed[:16] for seed in SEEDS] + [b""]), st.binary(max_size=200))
def test_noise_behind_a_signature_raises_nothing_but_sample_skipped(head: bytes, tail: bytes) -> None:
    only_skipped(head + tail)


def test_many_threads_agree() -> None:
    pictures = [encoded(clouds(90 + i, 120), "JPEG", icc_profile=wide_gamut()) for i in range(12)] + SEEDS

    def load(data: bytes) -> Pixels:
        return load_pixels(data, square(64), LIMIT)

    alone = [load(data) for data in pictures]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(alone * 3, pool.map(load, pictures * 3), strict=True):
            assert np.array_equal(one.data, other.data)
            assert one.crop == other.crop
