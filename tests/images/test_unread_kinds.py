"""Files that are not read here are told by what they are, never as corrupt; those of the extras, with and without."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcae_cache.errors import SampleSkipped
from dcae_cache.images.formats import kind_of, looks_like_image
from dcae_cache.images.pixels import image_size, load_pixels
from helpers.pictures import LIMIT, NATIVE, as_stored, clouds, encoded, noise, reason, rms, square, tiff

PICTURE = clouds(40, 56)


def refused(data: bytes, named: str) -> None:
    """By the whole file and by its header alone, in the same words."""
    for read in (lambda: load_pixels(data, NATIVE, LIMIT), lambda: image_size(BytesIO(data), LIMIT)):
        with pytest.raises(SampleSkipped) as skipped:
            read()
        assert skipped.value.reason == "unsupported"
        assert named in str(skipped.value)


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\x76\x2f\x31\x01\2\0\0\0", "OpenEXR"),
        (b"#?RADIANCE\n", "Radiance HDR"),
        (b"DDS |\0\0\0", "DDS"),
        (b"qoif\0\0\0\4", "QOI"),
        (b"P6\n4 4\n255\n", "Netpbm"),
        (b"\0\0\1\0\1\0", "Windows icon"),
        (b"<svg xmlns=", "SVG"),
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp42", "video"),
    ],
)
def test_kinds_by_their_signature(head: bytes, named: str) -> None:
    refused(head + bytes(100), named)
    assert looks_like_image(head)


def test_what_is_no_image_is_told_from_what_is_not_read() -> None:
    for text in (b"a caption", b"{}", b"%PDF-1.7", b"PK\3\4", b"\x7fELF"):
        assert not looks_like_image(text)
        assert reason(text) == "not_an_image"
    with pytest.raises(SampleSkipped, match="empty"):
        kind_of(b"")


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({258: [32] * 3, 262: [2], 277: [3], 339: [3] * 3}, "32+32+32-bit float samples (RGB)"),
        ({258: [32], 262: [1], 277: [1], 339: [3]}, "float"),
        ({258: [16], 262: [1], 277: [1], 339: [2]}, "signed"),
        ({258: [8], 262: [1], 277: [1], 339: [2]}, "signed"),
        ({258: [32] * 3, 262: [2], 277: [3]}, "32+32+32-bit integer samples (RGB)"),
        ({258: [16] * 3, 262: [8], 277: [3]}, "L*a*b*"),
        ({258: [8] * 3, 259: [50001], 262: [2], 277: [3]}, "WebP"),
        ({258: [8] * 3, 259: [34712], 262: [2], 277: [3]}, "JPEG 2000"),
        ({258: [8] * 3, 259: [12345], 262: [2], 277: [3]}, "compression 12345"),
        ({258: [16], 262: [32803], 277: [1]}, "photometric"),
        ({258: [8] * 3, 262: [2], 277: [3], 50706: [1]}, "camera raw"),
        ({258: [8] * 3, 254: [1], 262: [2], 277: [3], 330: [8]}, "camera raw"),
    ],
)
def test_tiffs_of_kinds_that_are_not_read(tags: dict[int, list[int]], named: str) -> None:
    refused(tiff((8, 8), [bytes(8 * 8 * 16)], {259: [1]} | tags), named)


def jpeg_with_frame(marker: int, bits: int, components: int) -> bytes:
    """A JPEG as Pillow writes it, with another kind of frame in its header."""
    data = bytearray(encoded(noise(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4], data[at + 9] = marker, bits, components
    return bytes(data)


@pytest.mark.parametrize(
    ("marker", "bits", "components", "named"),
    [(0xC1, 12, 3, "12-bit"), (0xC3, 16, 3, "16-bit"), (0xC0, 8, 2, "2 components"), (0xC5, 8, 3, "hierarchical")],
)
def test_jpegs_of_kinds_that_are_not_read(marker: int, bits: int, components: int, named: str) -> None:
    data = jpeg_with_frame(marker, bits, components)
    with pytest.raises(SampleSkipped, match=named) as skipped:
        load_pixels(data, NATIVE, LIMIT)
    assert skipped.value.reason == "unsupported"


# --- the extras ----------------------------------------------------------------------------------------------------


def heic(pixels: Any = PICTURE, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=-1, **options)
    return file.getvalue()


def jxl(image: Any = PICTURE, **options: Any) -> bytes:
    pytest.importorskip("pillow_jxl")
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return encoded(image, "JXL", lossless=True, **options)


def test_heic_is_read() -> None:
    data = heic(noise(40, 56))
    assert image_size(data, LIMIT) == image_size(BytesIO(data), LIMIT) == (40, 56)
    assert rms(as_stored(heic()), PICTURE) < 6
    assert load_pixels(heic(), square(32), LIMIT).data.shape == (32, 32, 3)
    assert reason(data, max_pixels=40 * 56 - 1) == "too_many_pixels"
    for broken in (data[: len(data) // 2], data[: len(data) // 2] + bytes(len(data) - len(data) // 2)):
        assert reason(broken) in ("truncated", "corrupt")


def test_jpeg_xl_is_read() -> None:
    for bare in (True, False):
        data = jxl(use_container=not bare)
        assert data.startswith(b"\xff\x0a") == bare
        assert image_size(data, LIMIT) == image_size(BytesIO(data), LIMIT) == (40, 56)
        assert np.array_equal(as_stored(data), PICTURE)
    data = jxl()
    assert load_pixels(data, square(32), LIMIT).data.shape == (32, 32, 3)
    assert reason(data, max_pixels=40 * 56 - 1) == "too_many_pixels"
    assert reason(data[: len(data) // 2]) in ("truncated", "corrupt")
    assert reason(data[:6]) in ("truncated", "corrupt")


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (300, 200), (200, 300), (256, 512), (90, 160), (600, 33)])
def test_the_size_of_a_jpeg_xl_is_that_of_its_header(size: tuple[int, int]) -> None:
    data = jxl(np.zeros((*size, 3), dtype=np.uint8))
    assert image_size(data, LIMIT) == size
    assert as_stored(data).shape[:2] == size


def test_modes_of_jpeg_xl() -> None:
    grey = Image.fromarray(PICTURE[..., 0])
    assert np.array_equal(as_stored(jxl(grey)), np.repeat(PICTURE[..., :1], 3, axis=2))
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    assert as_stored(jxl(clear)).min() == 255
    # What Pillow's plugin writes of 16-bit grey it calls linear, and that is how it is read.
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    light = deep / 65535
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(as_stored(jxl(Image.fromarray(deep)))[..., 0] - expected)[light > 0.05].max() <= 3


def test_without_its_extra_a_kind_is_refused_and_the_extra_named(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, lossless = heic(), jxl()
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("dcae_cache.images.jxl.find_spec", lambda name: None)
    refused(photo, "pip install 'dcae-cache[heif]'")
    refused(lossless, "pip install 'dcae-cache[jxl]'")


# --- ends that decoders don't miss ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {}),
        ("JPEG", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_an_unfinished_download_is_skipped_as_truncated(kind: str, options: dict[str, Any]) -> None:
    whole = encoded(noise(120, 160), kind, **options)
    for share in (0.3, 0.6, 0.95):
        cut = int(share * len(whole))
        assert reason(whole[:cut] + bytes(len(whole) - cut)) in (
            {"truncated"} if kind in ("WEBP", "AVIF", "JPEG") else {"truncated", "corrupt"}
        )


def test_flat_pictures_that_pack_well_are_whole() -> None:
    for color in ("black", "white", (200, 30, 30)):
        flat = Image.new("RGB", (1400, 1000), color)
        for kind, options in (("WEBP", {}), ("WEBP", {"lossless": True}), ("WEBP", {"method": 0}), ("AVIF", {})):
            assert rms(as_stored(encoded(flat, kind, **options)), np.asarray(flat)) < 3


def test_metadata_behind_the_pixels_may_end_in_zeros() -> None:
    for kind in ("WEBP", "AVIF"):
        data = encoded(PICTURE, kind, exif=Image.Exif().tobytes() + bytes(200))
        assert rms(as_stored(data), PICTURE) < 12
