"""Every kind of file and of pixels that is read, on images made here."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcae_cache.images.formats import IMAGE_SUFFIXES
from dcae_cache.images.pixels import image_size, load_pixels
from dcae_cache.records import Bucket
from helpers.pictures import LIMIT, NATIVE, as_stored, clouds, encoded, png, reason, rms, square


@pytest.mark.parametrize(
    ("kind", "options", "close"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 3),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("AVIF", {"quality": 90}, 4),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("GIF", {}, 8),
    ],
)
def test_every_format_gives_its_pixels(kind: str, options: dict[str, Any], close: float) -> None:
    picture = clouds(48, 72)
    pixels = load_pixels(encoded(picture, kind, **options), NATIVE, LIMIT)
    assert (pixels.height, pixels.width, pixels.bucket) == (48, 72, Bucket(48, 72))
    assert pixels.data.dtype == np.uint8
    assert pixels.data.flags.writeable
    assert pixels.data.flags.c_contiguous or pixels.data.transpose(2, 0, 1).flags.c_contiguous
    assert rms(pixels.data, picture) <= close
    assert image_size(encoded(picture, kind, **options), LIMIT) == (48, 72)
    assert image_size(BytesIO(encoded(picture, kind, **options)), LIMIT) == (48, 72)
    assert load_pixels(encoded(picture, kind, **options), square(32), LIMIT).data.flags.writeable


def test_the_first_of_several_frames_counts() -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG", "AVIF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert rms(as_stored(data), np.asarray(frames[0])) < 3, kind


def test_grey_one_bit_and_palette() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for kind in ("PNG", "JPEG", "TIFF", "BMP"):
        assert rms(as_stored(encoded(grey, kind)), np.repeat(grey[..., None], 3, axis=2)) < 1
    assert load_pixels(encoded(grey), square(8), LIMIT).data.shape == (8, 8, 3)
    black_and_white = Image.fromarray(grey > 99)
    assert set(np.unique(as_stored(encoded(black_and_white)))) == {0, 255}
    palette = Image.fromarray(clouds(16, 16)).quantize(40)
    assert np.array_equal(as_stored(encoded(palette)), np.asarray(palette.convert("RGB")))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    expected = np.rint(deep / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(as_stored(encoded(Image.fromarray(deep), kind))[..., 1], expected)
    color = struct.pack(">12H", 0, 32768, 65535, 257, 257 * 40, 257 * 200, 65535, 65535, 65535, 0, 0, 0)
    near = np.array([[[0, 128, 255], [1, 40, 200]], [[255, 255, 255], [0, 0, 0]]])
    assert np.abs(as_stored(png(2, 2, 16, 2, color)) - near).max() <= 1
    with_alpha = struct.pack(">8H", 65535, 0, 0, 65535, 65535, 0, 0, 0)
    assert as_stored(png(2, 1, 16, 6, with_alpha)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    grey_alpha = struct.pack(">4H", 257 * 100, 65535, 0, 0)
    assert as_stored(png(2, 1, 16, 4, grey_alpha)).tolist() == [[[100] * 3, [255] * 3]]


def test_alpha_is_composited_on_white() -> None:
    for mode, ink in (("RGBA", (200, 0, 100)), ("LA", (80,))):
        image = Image.new(mode, (3, 1))
        for x, alpha in enumerate((0, 128, 255)):
            image.putpixel((x, 0), (*ink, alpha))
        ink_rgb = np.array(ink * (3 // len(ink)))
        for kind in ("PNG", "TIFF"):
            row = as_stored(encoded(image, kind))[0].astype(int)
            assert row[0].tolist() == [255] * 3
            assert row[2].tolist() == ink_rgb.tolist()
            assert np.abs(row[1] - (ink_rgb * 128 + 255 * 127) / 255).max() <= 1
    palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert as_stored(encoded(palette, transparency=1)).tolist() == [[[255, 0, 0], [255] * 3, [0, 0, 255]]]
    see_through = as_stored(encoded(palette, transparency=bytes([255, 0, 128])))
    assert np.abs(see_through.astype(int) - [[[255, 0, 0], [255] * 3, [127, 127, 255]]]).max() <= 1
    keyed = Image.new("RGB", (2, 1), (1, 2, 3))
    keyed.putpixel((1, 0), (9, 9, 9))
    assert as_stored(encoded(keyed, transparency=(1, 2, 3))).tolist() == [[[255] * 3, [9] * 3]]
    assert as_stored(encoded(palette, "GIF", transparency=2))[0, 2].tolist() == [255] * 3


def test_cmyk_without_a_profile() -> None:
    cmyk = Image.new("CMYK", (64, 32), (0, 255, 255, 0))
    cmyk.paste((255, 255, 0, 128), (32, 0, 64, 32))
    for kind in ("JPEG", "TIFF"):  # Pillow writes, as Adobe does, a JPEG with its inks inverted
        pixels = as_stored(encoded(cmyk, kind, **({"quality": 95} if kind == "JPEG" else {})))
        assert np.abs(pixels[16, 8].astype(int) - [255, 0, 0]).max() <= 3
        assert np.abs(pixels[16, 56].astype(int) - [0, 0, 127]).max() <= 3


def test_pixels_without_a_defined_white_are_unsupported() -> None:
    for values in (np.ones((4, 4), dtype=np.float32), np.ones((4, 4), dtype=np.int32)):
        assert reason(encoded(Image.fromarray(values), "TIFF")) == "unsupported"


def test_the_suffixes_are_those_of_the_formats_read() -> None:
    assert " ".join(sorted(IMAGE_SUFFIXES)) == (
        ".apng .avif .bmp .dib .gif .heic .heif .hif .jfif .jpe .jpeg .jpg .jxl .mpo .pjp .pjpeg .png .tif .tiff .webp"
    )
