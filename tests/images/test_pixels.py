"""Decoding, orientation, colour and resizing, on images made here; and that bad bytes never raise anything else."""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from dcae_cache.errors import SampleSkipped
from dcae_cache.images import pixels as images
from dcae_cache.images import resample
from dcae_cache.images.buckets import BucketRule, bucket_for
from dcae_cache.images.pixels import IMAGE_SUFFIXES, image_size, load_pixels
from dcae_cache.images.resample import lanczos
from dcae_cache.records import Bucket, Pixels

LIMIT = 10**8
NATIVE = BucketRule(kind="native", factor=1)
LANCZOS = Image.Resampling.LANCZOS
Array = NDArray[np.uint8]


def encoded(image: Image.Image | Array, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def square(size: int) -> BucketRule:
    return BucketRule(kind="square", resolution=size, factor=1)


def as_stored(data: bytes) -> Array:
    return load_pixels(data, NATIVE, LIMIT).data


def reason(data: bytes, rule: BucketRule = NATIVE, max_pixels: int = LIMIT) -> str:
    with pytest.raises(SampleSkipped) as skipped:
        load_pixels(data, rule, max_pixels)
    return skipped.value.reason


def rms(a: Array, b: Array) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


def noise(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rings(height: int, width: int) -> Array:
    """Every spatial frequency up to the finest, in every direction."""
    y, x = np.mgrid[:height, :width]
    wave = np.cos(np.pi * ((x - width / 2) ** 2 + (y - height / 2) ** 2) / max(height, width))
    return np.repeat((127.5 + 127.5 * wave)[..., None], 3, axis=2).astype(np.uint8)


def patches(height: int, width: int) -> Array:
    """Coloured rectangles over one another: hard edges at all distances."""
    random = np.random.default_rng(1)
    out = np.zeros((height, width, 3), dtype=np.uint8)
    for _ in range(1500):
        y, x, h, w = random.integers(0, (height, width, 40, 40))
        out[y : y + h + 1, x : x + w + 1] = random.integers(0, 256, 3)
    return out


def clouds(height: int, width: int) -> Array:
    """Smooth to the pixel, as large camera photos are."""
    small = Image.fromarray(noise(height // 24 + 2, width // 24 + 2))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def ideal(pixels: Array, size: tuple[int, int], box: tuple[float, float, float, float]) -> Array:
    """Lanczos by its definition in float64: all pixels, first across, clipped, then down, rounded at the very end."""

    def matrix(length: int, start: float, stop: float, outputs: int) -> NDArray[np.float64]:
        scale = (stop - start) / outputs
        centers = start + (np.arange(outputs) + 0.5) * scale
        x = (np.arange(length) + 0.5 - centers[:, None]) / max(scale, 1)
        weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    down = matrix(pixels.shape[0], box[1], box[3], size[0])
    across = matrix(pixels.shape[1], box[0], box[2], size[1])
    narrow = np.clip(np.einsum("xX,YXc->Yxc", across, pixels.astype(float), optimize=True), 0, 255)
    out = np.einsum("yY,Yxc->yxc", down, narrow, optimize=True)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def exact(image: Image.Image, rule: BucketRule) -> Array:
    """All pixels decoded, one resample into the crop window."""
    bucket, crop = bucket_for(image.height, image.width, rule)
    down, across = image.height / crop.resized_height, image.width / crop.resized_width
    left, top = crop.left * across, crop.top * down
    box = (left, top, left + bucket.width * across, top + bucket.height * down)
    return ideal(np.asarray(image.convert("RGB")), (bucket.height, bucket.width), box)


# --- resizing ------------------------------------------------------------------------------------------------------


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


# --- orientation ---------------------------------------------------------------------------------------------------


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


# --- formats and colours -------------------------------------------------------------------------------------------


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


# --- ICC profiles --------------------------------------------------------------------------------------------------

ADOBE_PRIMARIES = {
    "r": (0.60974, 0.31111, 0.01947),
    "g": (0.20528, 0.62567, 0.06087),
    "b": (0.14919, 0.06322, 0.74457),
}


def png(width: int, height: int, depth: int, color_type: int, samples: bytes) -> bytes:
    """A PNG of exactly these samples, for those that Pillow can't write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    line = len(samples) // height
    lines = b"".join(b"\0" + samples[y * line : (y + 1) * line] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def icc(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """A version 2 profile made of these tags (ICC.1:2001, section 6)."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        **tags,
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def gamma(exponent: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256)) + bytes(2)


def wide_gamut() -> bytes:
    """Adobe RGB (1998): its primaries, adapted to D50, and its gamma."""
    tags = {f"{c}XYZ".encode(): xyz(*v) for c, v in ADOBE_PRIMARIES.items()}
    return icc(b"RGB ", tags | {f"{c}TRC".encode(): gamma(2.19921875) for c in "rgb"})


def from_adobe(rgb: Array) -> NDArray[np.float64]:
    """Adobe RGB to sRGB by the formulas, clipped to sRGB's gamut: 0 to 255."""
    to_xyz = np.array(list(ADOBE_PRIMARIES.values())).T
    srgb = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    linear = np.clip((rgb / 255) ** 2.19921875 @ (np.linalg.inv(srgb) @ to_xyz).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


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


# --- what can't be used --------------------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    return png(side, side, 8, 2, b"")


def test_each_failure_has_its_reason() -> None:
    jpeg = encoded(noise(200, 200), "JPEG")
    assert reason(b"") == "empty"
    assert reason(b"a text that calls itself .jpg") == "not_an_image"
    assert reason(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic") == "unsupported"
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


def test_odd_shapes_are_usable() -> None:
    area = BucketRule(kind="area", resolution=128, factor=32)
    for height, width in ((1, 1), (10, 20_000), (3000, 2)):
        pixels = load_pixels(encoded(np.full((height, width, 3), 77, dtype=np.uint8)), area, LIMIT)
        assert pixels.data.shape == (pixels.bucket.height, pixels.bucket.width, 3)
        assert np.all(pixels.data == 77)


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
@settings(max_examples=250, deadline=None)
def test_damaged_bytes_raise_nothing_but_sample_skipped(seed: bytes, data: st.DataObject) -> None:
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 8))):
        changed[data.draw(st.integers(0, min(len(seed) - 1, 600)))] = data.draw(st.integers(0, 255))
    only_skipped(bytes(changed[: data.draw(st.integers(0, len(seed)))] if data.draw(st.booleans()) else changed))


@given(st.sampled_from([seed[:16] for seed in SEEDS] + [b""]), st.binary(max_size=200))
@settings(deadline=None)
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


def test_the_suffixes_are_those_of_the_formats_read() -> None:
    assert " ".join(sorted(IMAGE_SUFFIXES)) == ".avif .bmp .gif .jpe .jpeg .jpg .png .tif .tiff .webp"
