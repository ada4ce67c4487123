"""What stands in a PNG beside its pixels: texts, EXIF wherever it is, profiles of any size, and its end."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from dcae_cache.images.pixels import image_size
from helpers.pictures import (
    ADOBE_PRIMARIES,
    LIMIT,
    Array,
    as_stored,
    chunk,
    clouds,
    from_adobe,
    gamma,
    icc,
    noise,
    png_of,
    reason,
    xyz,
)

PICTURE = clouds(40, 56)
BOMB = zlib.compress(bytes(3_000_000))


def texts() -> list[tuple[bytes, bytes]]:
    return [
        (b"zTXt", b"Comment\0\0" + BOMB),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
        (b"iTXt", b"workflow\0\1\0en\0work\0" + BOMB),
        (b"tEXt", b"parameters\0" + b"x" * 3_000_000),
        (b"zTXt", b"Raw profile type exif\0\0" + BOMB),
        (b"zTXt", b"Comment\0\0" + b"not zlib"),
        (b"zTXt", b""),
        (b"iTXt", b"XML:com.adobe.xmp\0\1"),
    ]


@pytest.mark.parametrize("text", texts(), ids=lambda text: text[1][:12].decode(errors="replace"))
def test_texts_are_passed_over_wherever_they_stand(text: tuple[bytes, bytes]) -> None:
    for data in (png_of(PICTURE, text), png_of(PICTURE, after=[text]), png_of(PICTURE, text, text, after=[text])):
        assert image_size(data, LIMIT) == image_size(BytesIO(data), LIMIT) == (40, 56)
        assert np.array_equal(as_stored(data), PICTURE)


def test_a_text_that_inflates_a_thousandfold_costs_no_memory() -> None:
    bomb = zlib.compress(bytes(300_000_000), 9)
    data = png_of(PICTURE, *[(b"zTXt", b"Comment\0\0" + bomb), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)])
    tracemalloc.start()
    assert np.array_equal(as_stored(data), PICTURE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()[6:]


def xmp(orientation: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
        % orientation
    )


def test_orientation_counts_in_front_of_the_pixels_and_behind_them() -> None:
    upright: Array = np.rot90(PICTURE, -1)
    hexed = b"\nexif\n%8d\n" % (6 + len(exif(6))) + (b"Exif\0\0" + exif(6)).hex().encode() + b"\n"
    for data in (
        png_of(PICTURE, (b"eXIf", exif(6))),
        png_of(PICTURE, after=[(b"eXIf", exif(6))]),
        png_of(PICTURE, after=[(b"zTXt", b"Comment\0\0" + BOMB), (b"eXIf", exif(6))]),
        png_of(PICTURE, (b"eXIf", exif(6)), after=[(b"eXIf", exif(1))]),
        png_of(PICTURE, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6))),
        png_of(PICTURE, (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(6)))),
        png_of(PICTURE, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexed))),
    ):
        assert image_size(data, LIMIT) == image_size(BytesIO(data), LIMIT) == (56, 40)
        assert np.array_equal(as_stored(data), upright)


def test_a_profile_of_more_than_a_megabyte_is_applied() -> None:
    tags = {f"{c}XYZ".encode(): xyz(*v) for c, v in ADOBE_PRIMARIES.items()}
    tags |= {f"{c}TRC".encode(): gamma(2.19921875) for c in "rgb"}
    big = icc(b"RGB ", tags | {b"priv": b"data" + bytes(2_000_000)})
    data = png_of(PICTURE, (b"iCCP", b"big\0\0" + zlib.compress(big)))
    assert np.abs(as_stored(data) - from_adobe(PICTURE)).max() <= 3
    bomb = (b"iCCP", b"big\0\0" + zlib.compress(bytes(40_000_000)))
    assert reason(png_of(PICTURE, bomb)) == "unsupported"


def many_chunks(pixels: Array, size: int) -> bytes:
    """A PNG whose pixels come in chunks of ``size`` bytes, as most programs write them."""
    whole = png_of(pixels)
    start = whole.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", whole, start)
    packed = whole[start + 8 : start + 8 + length]
    pieces = b"".join(chunk(b"IDAT", packed[i : i + size]) for i in range(0, length, size))
    return whole[:start] + pieces + chunk(b"IEND", b"")


def test_an_unfinished_download_is_truncated_however_it_ends() -> None:
    picture = noise(60, 80)
    for whole in (png_of(picture), many_chunks(picture, 1000), png_of(picture, (b"tEXt", b"a\0b"))):
        assert np.array_equal(as_stored(whole), picture)
        for share in (0.3, 0.5, 0.9, 0.99):
            cut = int(share * len(whole))
            assert reason(whole[:cut]) == "truncated"
            assert reason(whole[:cut] + bytes(len(whole) - cut)) == "truncated"


def test_pixels_whose_checksum_is_wrong_are_corrupt() -> None:
    whole = bytearray(png_of(noise(60, 80)))
    whole[len(whole) // 2] ^= 1
    assert reason(bytes(whole)) == "corrupt"


def test_a_png_of_xcode_is_unsupported() -> None:
    data = png_of(PICTURE)
    assert reason(data[:8] + chunk(b"CgBI", bytes(4)) + data[8:]) == "unsupported"


def test_the_first_frame_of_an_animation_with_texts_and_exif() -> None:
    frames = [Image.fromarray(PICTURE), Image.new("RGB", (56, 40), "red")]
    file = BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    data = file.getvalue()
    at = data.index(b"IDAT") - 4
    texted = data[:at] + chunk(b"zTXt", b"Comment\0\0" + BOMB) + data[at:]
    for one in (data, texted):
        assert np.array_equal(as_stored(one), PICTURE)
        assert image_size(one, LIMIT) == (40, 56)
