"""Colour spaces that a file names otherwise than by an ICC profile, and which of several names counts."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dcae_cache.errors import SampleSkipped
from dcae_cache.images import boxes, spaces
from dcae_cache.images.pixels import image_size
from helpers.pictures import (
    Array,
    as_stored,
    clouds,
    encoded,
    from_adobe,
    icc,
    png,
    png_of,
    reason,
    wide_gamut,
)

PICTURE = clouds(40, 56)
Floats = NDArray[np.float64]
# Display P3 to sRGB, both D65, linear light: the product of the two standards' matrices (CSS Color 4, section 17).
P3_TO_SRGB = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
BT2020_TO_SRGB = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


def linear(pixels: Array) -> Floats:
    value = pixels / 255
    return np.asarray(np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4))


def srgb(light: Floats) -> Floats:
    light = np.clip(light, 0, 1)
    return np.asarray(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def from_p3(pixels: Array) -> Floats:
    return srgb(linear(pixels) @ P3_TO_SRGB.T)


def off(data: bytes, expected: Floats | Array) -> float:
    return float(np.abs(as_stored(data).astype(float) - expected).max())


def cicp(primaries: int, transfer: int, matrix: int = 0, full_range: int = 1) -> tuple[bytes, bytes]:
    return b"cICP", bytes([primaries, transfer, matrix, full_range])


def gama(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def chrm(*values: float) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values))


def iccp(profile: bytes) -> tuple[bytes, bytes]:
    return b"iCCP", b"a profile\0\0" + zlib.compress(profile)


P3_POINTS = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)


def test_cicp_is_converted() -> None:
    assert np.abs(from_p3(PICTURE) - PICTURE).max() > 20
    assert off(png_of(PICTURE, cicp(12, 13)), from_p3(PICTURE)) <= 2
    assert off(png_of(PICTURE, cicp(9, 8)), srgb((PICTURE / 255) @ BT2020_TO_SRGB.T)) <= 3
    assert off(png_of(PICTURE, cicp(1, 4)), srgb((PICTURE / 255) ** 2.2)) <= 2
    for same in ((1, 13), (2, 2), (1, 1)):
        assert np.array_equal(as_stored(png_of(PICTURE, cicp(*same))), PICTURE)


def test_what_a_png_says_first_counts() -> None:
    adobe, p3, linear_light = iccp(wide_gamut()), cicp(12, 13), gama(1.0)
    assert np.array_equal(as_stored(png_of(PICTURE, cicp(1, 13), adobe)), PICTURE)
    assert off(png_of(PICTURE, p3, adobe), from_p3(PICTURE)) <= 2
    assert off(png_of(PICTURE, p3, (b"sRGB", b"\0"), linear_light), from_p3(PICTURE)) <= 2
    assert off(png_of(PICTURE, adobe, linear_light), from_adobe(PICTURE)) <= 3
    assert np.array_equal(as_stored(png_of(PICTURE, (b"sRGB", b"\0"), linear_light, chrm(*P3_POINTS))), PICTURE)
    assert off(png_of(PICTURE, linear_light, (b"eXIf", adobe_exif()[6:])), srgb(PICTURE / 255)) <= 2
    assert off(png_of(PICTURE, (b"eXIf", adobe_exif()[6:])), from_adobe(PICTURE)) <= 3


def test_gamma_and_chromaticities() -> None:
    assert off(png_of(PICTURE, gama(1.0)), srgb(PICTURE / 255)) <= 2
    assert off(png_of(PICTURE, gama(1 / 1.8)), srgb((PICTURE / 255) ** 1.8)) <= 2
    assert off(png_of(PICTURE, gama(1.0), chrm(*P3_POINTS)), srgb((PICTURE / 255) @ P3_TO_SRGB.T)) <= 3
    assert off(png_of(PICTURE, chrm(*P3_POINTS)), from_p3(PICTURE)) <= 2
    grey = PICTURE[..., 0]
    data = png(56, 40, 8, 0, grey.tobytes(), [gama(1.0)])
    assert off(data, np.repeat(srgb(grey / 255)[..., None], 3, axis=2)) <= 2


@pytest.mark.parametrize(
    "chunks",
    [
        [gama(1 / 2.2)],  # written beside sRGB by nearly everything, often without the sRGB chunk
        [gama(0.45), chrm(0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)],
        [gama(0.0)],
        [(b"gAMA", b"\xff\xff\xff\xff")],
        [chrm(0, 0, 0, 0, 0, 0, 0, 0)],
        [chrm(0.3127, 0.329, *(0.3, 0.3) * 3)],  # three primaries in one point
        [chrm(0.9, 0.05, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)],  # a white outside them
    ],
)
def test_gamma_near_srgb_and_impossible_values_change_nothing(chunks: list[tuple[bytes, bytes]]) -> None:
    assert np.array_equal(as_stored(png_of(PICTURE, *chunks)), PICTURE)


@pytest.mark.parametrize(
    ("chunk", "named"),
    [
        (cicp(9, 16), "PQ"),
        (cicp(9, 18), "HLG"),
        (cicp(10, 13), "primaries 10"),
        (cicp(1, 9), "transfer 9"),
        (cicp(1, 13, full_range=0), "narrow"),
        (cicp(1, 13, matrix=1), "matrix 1"),
    ],
)
def test_high_dynamic_range_and_unknown_spaces_are_unsupported(chunk: tuple[bytes, bytes], named: str) -> None:
    data = png_of(PICTURE, chunk)
    for read in (as_stored, lambda data: image_size(data, 10**6)):
        with pytest.raises(SampleSkipped, match=named) as skipped:
            read(data)
        assert skipped.value.reason == "unsupported"


def test_a_profile_that_says_pq_is_unsupported() -> None:
    for transfer, expected in ((16, "unsupported"), (18, "unsupported")):
        profile = icc(b"RGB ", {b"cicp": b"cicp" + bytes(4) + bytes([9, transfer, 0, 1])})
        for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
            assert reason(encoded(PICTURE, kind, icc_profile=profile)) == expected, kind
    spaces.refuse_hdr_profile(icc(b"RGB ", {b"cicp": b"cicp" + bytes(4) + bytes([12, 13, 0, 1])}))


def avif(pixels: Array, primaries: int, transfer: int, **options: Any) -> bytes:
    """An AVIF whose nclx says so: Pillow writes BT.709 and sRGB, or beside a profile that they are unspecified."""
    data = encoded(pixels, "AVIF", quality=100, subsampling="4:4:4", **options)
    at = data.index(b"nclx") + 4
    assert struct.unpack_from(">2H", data, at) in ((1, 13), (2, 2))
    return data[:at] + struct.pack(">2H", primaries, transfer) + data[at + 4 :]


def test_nclx_of_an_avif_is_converted_unless_it_has_a_profile() -> None:
    soft = (PICTURE // 4 + 96).astype(np.uint8)  # well inside sRGB's gamut: what the codec changes isn't blown up
    assert boxes.nclx(avif(soft, 12, 13)) == (12, 13, 6, True)
    assert off(avif(soft, 12, 13), from_p3(soft)) <= 5
    assert np.abs(from_p3(soft) - soft).max() > 8
    assert off(avif(soft, 1, 13), soft) <= 5
    assert off(avif(soft, 12, 13, icc_profile=wide_gamut()), from_adobe(soft)) <= 7
    assert reason(avif(soft, 9, 16)) == "unsupported"


def adobe_exif(index: str = "R03", color_space: int = 0xFFFF) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = color_space
    exif.get_ifd(0x8769)[0xA005] = {1: index}
    exif[0x0112] = 1
    return exif.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_adobe_rgb_by_exif_alone(kind: str) -> None:
    color = np.full((16, 24, 3), (60, 200, 90), dtype=np.uint8)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[kind]
    read = Image.open(BytesIO(encoded(color, kind, exif=adobe_exif(), **options))).getexif()
    assert read.get_ifd(0xA005) == {1: "R03"}
    assert off(encoded(color, kind, exif=adobe_exif(), **options), from_adobe(color)) <= 5
    for other in (adobe_exif("R98"), adobe_exif(color_space=1), adobe_exif()[:40]):
        assert off(encoded(color, kind, exif=other, **options), color) <= 3
    p3 = spaces.of_code_points(12, 13, full_range=True)
    assert off(encoded(color, kind, exif=adobe_exif(), icc_profile=p3, **options), from_p3(color)) <= 5
