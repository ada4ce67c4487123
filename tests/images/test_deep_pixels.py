"""Samples of more than 8 bits, and frames that fill only a part: read rightly or refused, never garbage."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dcae_cache.images.pixels import image_size
from helpers.pictures import Array, as_stored, encoded, png, reason, tiff

RAMP = np.linspace(0, 65535, 32 * 48).astype(np.uint16).reshape(32, 48)
COLOR = np.stack([RAMP, RAMP[::-1], np.roll(RAMP, 7, axis=1)], axis=-1)
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
NONE, DEFLATE = 1, 8


def levels(values: NDArray[np.uint16], white: int = 65535) -> Array:
    return np.rint(values.astype(float) / white * 255).astype(np.uint8)


def grey(values: Array) -> Array:
    return np.repeat(values[..., None], 3, axis=2)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
def test_16_bit_grey_tiff_whichever_end_is_white(big: bool, compression: int, photometric: int) -> None:
    stored = (65535 - RAMP if photometric == WHITE_IS_ZERO else RAMP).astype(">u2" if big else "<u2").tobytes()
    data = zlib.compress(stored) if compression == DEFLATE else stored
    file = tiff((32, 48), [data], {258: [16], 259: [compression], 262: [photometric], 277: [1]}, big)
    assert image_size(file, 10**6) == (32, 48)
    assert np.array_equal(as_stored(file), grey(levels(RAMP)))


def test_12_bit_grey_tiff_is_scaled_by_its_own_white() -> None:
    values = RAMP >> 4
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").tobytes()
    stored = b"".join(packed[i + 1 : i + 4] for i in range(0, len(packed), 4))
    file = tiff((32, 48), [stored], {258: [12], 259: [NONE], 262: [BLACK_IS_ZERO], 277: [1]})
    assert np.array_equal(as_stored(file), grey(levels(values, 4095)))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("alpha", [False, True])
def test_16_bit_planar_tiff(big: bool, compression: int, alpha: bool) -> None:
    bands = [COLOR[..., band] for band in range(3)] + ([np.full_like(RAMP, 65535)] if alpha else [])
    planes = [band.astype(">u2" if big else "<u2").tobytes() for band in bands]
    planes = [zlib.compress(plane) for plane in planes] if compression == DEFLATE else planes
    tags = {258: [16] * len(bands), 259: [compression], 262: [RGB], 277: [len(bands)], 284: [2]}
    file = tiff((32, 48), planes, tags | ({338: [2]} if alpha else {}), big)
    assert np.abs(as_stored(file).astype(int) - levels(COLOR)).max() <= 1


def test_8_bit_planar_tiff() -> None:
    color = levels(COLOR)
    planes = [color[..., band].tobytes() for band in range(3)]
    tags = {258: [8] * 3, 259: [NONE], 262: [RGB], 277: [3], 284: [2]}
    assert np.array_equal(as_stored(tiff((32, 48), planes, tags)), color)


def test_planar_kinds_that_would_come_out_as_garbage_are_refused() -> None:
    planes = [RAMP.astype("<u2").tobytes()] * 4
    tags = {258: [16] * 4, 259: [NONE], 277: [4], 284: [2]}
    assert reason(tiff((32, 48), planes, tags | {262: [5]})) == "unsupported"
    assert reason(tiff((32, 48), planes, tags | {262: [RGB], 338: [1]})) == "unsupported"


def test_a_transparent_colour_of_16_bits_counts_with_all_of_them() -> None:
    values = np.array([[1000, 1001, 0], [65535, 1000, 30_000]], dtype=np.uint16)
    stored = values.astype(">u2").tobytes()
    expected = grey(levels(values))
    expected[values == 1000] = 255
    assert np.array_equal(as_stored(png(3, 2, 16, 0, stored, [(b"tRNS", struct.pack(">H", 1000))])), expected)

    color = np.stack([values, values[::-1], values], axis=-1)
    color[0, 0] = 1000, 2000, 3000
    color[1, 1] = 1000, 2000, 3001  # the same high bytes
    file = png(3, 2, 16, 2, color.astype(">u2").tobytes(), [(b"tRNS", struct.pack(">3H", 1000, 2000, 3000))])
    found = as_stored(file)
    assert found[0, 0].tolist() == [255] * 3
    opaque = (color != [1000, 2000, 3000]).any(axis=-1)
    assert opaque.sum() == 5
    assert np.abs(found.astype(int) - levels(color))[opaque].max() <= 1


def test_a_first_frame_smaller_than_the_canvas_lies_on_white() -> None:
    frame = Image.new("P", (4, 3), 1)
    frame.putpalette([0, 0, 255, 255, 0, 0])  # colour 0, which Pillow fills up with, is blue
    data = bytearray(encoded(frame, "GIF"))
    data[6:10] = struct.pack("<2H", 10, 8)  # the canvas
    at = data.index(b",\0\0\0\0\x04\0\x03\0")
    data[at + 1 : at + 5] = struct.pack("<2H", 2, 5)  # where the frame lies on it
    expected = np.full((8, 10, 3), 255, dtype=np.uint8)
    expected[5:8, 2:6] = 255, 0, 0
    assert np.array_equal(as_stored(bytes(data)), expected)


def webp_animation(frame: Image.Image, place: tuple[int, int], canvas: tuple[int, int]) -> bytes:
    """An animation of one frame, lossless and without alpha, on a (width, height) canvas (RFC 9649)."""
    still = encoded(frame, "WEBP", lossless=True)
    still = still[still.index(b"VP8L") :]

    def u24(*values: int) -> bytes:
        return b"".join(value.to_bytes(3, "little") for value in values)

    def riff(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    place_and_size = u24(place[0] // 2, place[1] // 2, frame.width - 1, frame.height - 1, 100) + b"\0"
    chunks = riff(b"VP8X", b"\x02\0\0\0" + u24(canvas[0] - 1, canvas[1] - 1))
    chunks += riff(b"ANIM", bytes(6)) + riff(b"ANMF", place_and_size + still)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def test_so_does_that_of_a_webp_animation() -> None:
    data = webp_animation(Image.new("RGB", (8, 6), (255, 0, 0)), (4, 2), (20, 16))
    assert Image.open(BytesIO(data)).size == (20, 16)
    expected = np.full((16, 20, 3), 255, dtype=np.uint8)
    expected[2:8, 4:12] = 255, 0, 0
    assert np.array_equal(as_stored(data), expected)
