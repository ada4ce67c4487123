"""Fitting an image to its bucket: how it is resized, cropped and turned."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from dcae_cache.images import pixels as images
from dcae_cache.images.buckets import BucketRule
from dcae_cache.images.pixels import image_size, load_pixels
from dcae_cache.images.resample import lanczos
from dcae_cache.records import Bucket
from helpers.pictures import LIMIT, Array, as_stored, clouds, encoded, exact, noise, patches, rings, rms, square


@pytest.mark.parametrize("picture", [noise, rings, patches, clouds])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_stays_within_one_level_of_the_exact_resample(
    picture: Any, subsampling: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_DRAFT_PIXELS", 0)  # a photo large enough for it would take long to make
    data = encoded(picture(803, 1201), "JPEG", quality=92, subsampling=subsampling)
    whole = Image.open(BytesIO(data))
    for size in (64, 100, 200, 512):
        assert rms(load_pixels(data, square(size), LIMIT).data, exact(whole, square(size))) < 1
    area = BucketRule(kind="area", resolution=128, factor=32)
    assert rms(load_pixels(data, area, LIMIT).data, exact(whole, area)) < 1


def test_only_a_smooth_jpeg_is_decoded_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def spy(image: Image.Image, *rest: Any) -> Array:
        seen.append(image.size)
        return lanczos(image, *rest)

    monkeypatch.setattr(images, "lanczos", spy)
    for picture in (clouds, rings):
        load_pixels(encoded(picture(803, 1201), "JPEG"), square(96), LIMIT)
    assert seen == [(1201, 803)] * 2, "below 4 megapixels it isn't tried"
    monkeypatch.setattr(images, "_DRAFT_PIXELS", 803 * 1201)
    for picture in (clouds, rings):
        load_pixels(encoded(picture(803, 1201), "JPEG"), square(96), LIMIT)
    assert seen[2:] == [(301, 201), (1201, 803)]


def test_a_flat_image_stays_flat_and_an_unscaled_one_stays_itself() -> None:
    for level in (0, 1, 127, 254, 255):
        data = encoded(np.full((37, 61, 3), level, dtype=np.uint8))
        assert np.all(load_pixels(data, square(32), LIMIT).data == level)
    picture = noise(64, 96)
    assert np.array_equal(load_pixels(encoded(picture), square(64), LIMIT).data, picture[:, 16:80])
    native = load_pixels(encoded(picture), BucketRule(kind="native", factor=20), LIMIT)
    assert native.bucket == Bucket(60, 80)
    assert np.array_equal(native.data, picture[2:62, 8:88])


def center_crop_arr(pil_image: Image.Image, image_size: int) -> Array:
    """ADM's published steps (openai/guided-diffusion), to compare with."""
    while min(*pil_image.size) >= 2 * image_size:
        pil_image = pil_image.resize((pil_image.width // 2, pil_image.height // 2), resample=Image.Resampling.BOX)
    scale = image_size / min(*pil_image.size)
    wide, high = round(pil_image.width * scale), round(pil_image.height * scale)
    arr = np.array(pil_image.resize((wide, high), resample=Image.Resampling.BICUBIC))
    crop_y, crop_x = (arr.shape[0] - image_size) // 2, (arr.shape[1] - image_size) // 2
    return arr[crop_y : crop_y + image_size, crop_x : crop_x + image_size]


@pytest.mark.parametrize("shape", [(64, 64), (75, 100), (500, 333), (129, 640), (31, 40), (257, 255)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_adm_crop_is_exactly_the_published_one(shape: tuple[int, int], kind: str) -> None:
    data = encoded(patches(*shape), kind)
    rule = BucketRule(kind="square", resolution=64, factor=32, crop="adm")
    theirs = center_crop_arr(Image.open(BytesIO(data)).convert("RGB"), 64)
    assert np.array_equal(load_pixels(data, rule, LIMIT).data, theirs)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_turning_first(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(clouds(603, 401))
    data = encoded(picture, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert image_size(data, LIMIT) == (upright.height, upright.width)
    assert np.array_equal(as_stored(data), np.asarray(upright))
    for rule in (square(64), BucketRule(kind="area", resolution=64, factor=8), square(500)):
        pixels = load_pixels(data, rule, LIMIT)
        assert (pixels.height, pixels.width) == (upright.height, upright.width)
        assert rms(pixels.data, exact(upright, rule)) < 0.8


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_broken_exif_says_nothing_against_the_pixels(kind: str) -> None:
    for exif in (b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01", b"Exif\0\0junk"):
        data = encoded(noise(8, 9), kind, exif=exif)
        assert as_stored(data).shape == (8, 9, 3)
        assert image_size(data, LIMIT) == (8, 9)


def test_odd_shapes_are_usable() -> None:
    area = BucketRule(kind="area", resolution=128, factor=32)
    for height, width in ((1, 1), (10, 20_000), (3000, 2)):
        pixels = load_pixels(encoded(np.full((height, width, 3), 77, dtype=np.uint8)), area, LIMIT)
        assert pixels.data.shape == (pixels.bucket.height, pixels.bucket.width, 3)
        assert np.all(pixels.data == 77)
