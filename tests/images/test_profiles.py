"""ICC profiles: what they say is applied, and broken ones are ignored."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from dcae_cache.images.pixels import load_pixels
from helpers.pictures import LIMIT, as_stored, clouds, encoded, from_adobe, gamma, icc, noise, rms, square, wide_gamut


def test_a_wide_gamut_profile_becomes_srgb() -> None:
    picture = clouds(40, 56)
    expected = from_adobe(picture)
    assert rms(picture, expected.astype(np.uint8)) > 5
    for kind in ("PNG", "TIFF", "WEBP"):
        data = encoded(picture, kind, icc_profile=wide_gamut(), **({"lossless": True} if kind == "WEBP" else {}))
        assert np.abs(as_stored(data) - expected).max() <= 3
    data = encoded(np.full((40, 56, 3), (60, 200, 90), dtype=np.uint8), "JPEG", icc_profile=wide_gamut())
    small = load_pixels(data, square(16), LIMIT).data
    assert np.abs(small - from_adobe(np.array([60, 200, 90], dtype=np.uint8))).max() <= 4


def test_alpha_meets_white_after_the_profile() -> None:
    image = Image.new("RGBA", (2, 1), (60, 200, 90, 255))
    image.putpixel((1, 0), (60, 200, 90, 0))
    row = as_stored(encoded(image, icc_profile=wide_gamut()))[0]
    assert np.abs(row[0] - from_adobe(np.array([60, 200, 90], dtype=np.uint8))).max() <= 3
    assert row[1].tolist() == [255, 255, 255]


def test_a_grey_profile_is_applied_to_grey() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    brighter = icc(b"GRAY", {b"kTRC": gamma(1.5)})
    found = as_stored(encoded(grey, icc_profile=brighter)).astype(float)
    light = (grey / 255) ** 1.5
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(found - expected[..., None]).max() <= 3
    assert (
        np.abs(
            as_stored(encoded(grey, icc_profile=wide_gamut()))[..., 0] - from_adobe(np.stack([grey] * 3, -1))[..., 0]
        ).max()
        <= 3
    )


def test_a_cmyk_profile_is_used() -> None:
    # Each corner of the ink cube a Lab colour: no ink is white, cyan alone L* 50, anything else black.
    corners = [(0, 128, 128)] * 16
    corners[0], corners[8] = (255, 128, 128), (128, 128, 128)
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += ramp * 4 + bytes(v for corner in corners for v in corner) + ramp * 3
    profile = icc(b"CMYK", {b"A2B0": lut}, connection=b"Lab ", kind=b"prtr")
    cmyk = Image.new("CMYK", (2, 1), (0, 0, 0, 0))
    cmyk.putpixel((1, 0), (255, 0, 0, 0))
    row = as_stored(encoded(cmyk, "TIFF", icc_profile=profile))[0].astype(int)
    assert np.abs(row - [[255] * 3, [119] * 3]).max() <= 3
    assert as_stored(encoded(cmyk, "TIFF"))[0].tolist() == [[255] * 3, [0, 255, 255]]


def test_lab_becomes_srgb() -> None:
    lab = Image.frombytes("LAB", (2, 1), bytes([255, 0, 0, 128, 0, 0]))
    row = as_stored(encoded(lab, "TIFF"))[0].astype(int)
    assert np.abs(row - [[255] * 3, [119] * 3]).max() <= 2


@pytest.mark.parametrize(
    "profile", [b"", b"junk", b"\0" * 200, wide_gamut()[:150], icc(b"CMYK", {}), icc(b"RGB ", {})]
)
def test_a_broken_or_foreign_profile_is_ignored(profile: bytes) -> None:
    picture = clouds(8, 8)
    assert np.array_equal(as_stored(encoded(picture, icc_profile=profile)), picture)


def test_srgb_under_another_name_changes_nothing() -> None:
    picture = noise(16, 16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(as_stored(encoded(picture, icc_profile=profile)), picture)
