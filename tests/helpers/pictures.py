"""Pictures for tests of images/: patterns, files of exactly given samples and profiles, and exact resampling."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dcae_cache.errors import SampleSkipped
from dcae_cache.images.buckets import BucketRule, bucket_for
from dcae_cache.images.pixels import load_pixels

LIMIT = 10**8


NATIVE = BucketRule(kind="native", factor=1)


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


def exact(image: Image.Image, rule: BucketRule) -> Array:
    """All pixels decoded, one resample into the crop window."""
    bucket, crop = bucket_for(image.height, image.width, rule)
    down, across = image.height / crop.resized_height, image.width / crop.resized_width
    left, top = crop.left * across, crop.top * down
    box = (left, top, left + bucket.width * across, top + bucket.height * down)
    return ideal(np.asarray(image.convert("RGB")), (bucket.height, bucket.width), box)


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


def png(
    width: int,
    height: int,
    depth: int,
    color_type: int,
    samples: bytes,
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of exactly these samples, for those that Pillow can't write; more chunks ``before`` and ``after`` them."""
    line = len(samples) // height
    lines = b"".join(b"\0" + samples[y * line : (y + 1) * line] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(lines)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(pixels: Array, *before: tuple[bytes, bytes], after: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """An 8-bit RGB PNG of these pixels, with more chunks."""
    return png(pixels.shape[1], pixels.shape[0], 8, 2, pixels.tobytes(), before, after)


def tiff(
    size: tuple[int, int], planes: Sequence[bytes], tags: Mapping[int, Sequence[int]], big: bool = False
) -> bytes:
    """A TIFF of (height, width) whose strips are exactly ``planes``; ``tags`` beside the sizes and places, each number
    of them 32 bits wide. ``big``: big-endian."""
    end = ">" if big else "<"
    fields = {256: [size[1]], 257: [size[0]], 278: [size[0]], **tags}
    fields |= {273: [0] * len(planes), 279: [len(plane) for plane in planes]}
    start = 8 + 2 + 12 * len(fields) + 4
    extra, strips = b"", start + sum(4 * len(v) for v in fields.values() if len(v) > 1)
    fields[273] = [strips + sum(map(len, planes[:i])) for i in range(len(planes))]
    directory = struct.pack(end + "H", len(fields))
    for tag, values in sorted(fields.items()):
        packed = struct.pack(end + "I" * len(values), *values)
        if len(values) == 1:
            directory += struct.pack(end + "HHI", tag, 4, 1) + packed
        else:
            directory += struct.pack(end + "HHII", tag, 4, len(values), start + len(extra))
            extra += packed
    magic = b"MM\0*\0\0\0\x08" if big else b"II*\0\x08\0\0\0"
    return magic + directory + bytes(4) + extra + b"".join(planes)


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


ADOBE_PRIMARIES = {
    "r": (0.60974, 0.31111, 0.01947),
    "g": (0.20528, 0.62567, 0.06087),
    "b": (0.14919, 0.06322, 0.74457),
}


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
