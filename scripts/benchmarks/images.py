"""Encoded bytes to a uint8 crop on one thread: load_pixels against the peers' path, PIL decode + the ADM centre crop.

Both take turns on a few images at a time, and the best CPU time of each on each image counts, so that other work on
the machine falls on both.
The error is that of load_pixels from decoding every pixel and one Lanczos resample of Pillow's into the same box.
Some of the images are enlarged too, to what a camera gives, and measured by themselves.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from dcae_cache.images.buckets import BucketRule, bucket_for
from dcae_cache.images.color import flatten, to_srgb
from dcae_cache.images.formats import IMAGE_SUFFIXES
from dcae_cache.images.pixels import load_pixels

from .report import judge

MAX_PIXELS = 10**9
RATIO_TARGET, LARGE_RATIO_TARGET = 1.4, 2.0  # times PIL + ADM
ERROR_TARGET = 1.0  # levels of 255, rms
CHUNK = 32
# What ImageNet holds, roughly, and one image that is large.
MADE_SIZES = [(500, 375), (375, 500), (500, 333), (400, 300), (640, 480), (500, 500), (250, 188), (1600, 1200)]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table. Times are CPU seconds for the whole folder; errors are levels of 255, rms per image."""

    size: int
    ours: float
    adm: float
    mean_error: float
    max_error: float


def main(args: list[str]) -> None:
    """Measure at each size and print a table."""
    parser = argparse.ArgumentParser(prog="scripts/bench images", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of images; some are made unless given")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--limit", type=int, help="use only so many of them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megapixels", type=float, default=12.0, help="of the enlarged ones; 0: none")
    parser.add_argument("--enlarged", type=int, default=16, help="so many of the images, evenly chosen")
    options = parser.parse_args(args)
    data = (_read(options.photos) if options.photos else _made())[: options.limit]
    _show([_measure(data, size, options.repeats) for size in options.sizes], data, options, RATIO_TARGET)
    if options.megapixels:
        step = max(1, len(data) // options.enlarged)
        data = [_enlarged(encoded, options.megapixels * 1e6) for encoded in data[::step][: options.enlarged]]
        print(f"\nenlarged to {options.megapixels:g} megapixels:\n")
        _show([_measure(data, size, options.repeats) for size in options.sizes], data, options, LARGE_RATIO_TARGET)


def _enlarged(encoded: bytes, num_pixels: float) -> bytes:
    image = Image.open(BytesIO(encoded)).convert("RGB")
    scale = (num_pixels / (image.width * image.height)) ** 0.5
    size = round(image.width * scale), round(image.height * scale)
    with BytesIO() as file:
        image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        return file.getvalue()


def _read(folder: Path) -> list[bytes]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path.read_bytes() for path in files]


def _made() -> list[bytes]:
    """JPEGs with the spectrum of photos (amplitudes falling a little faster than 1/f), to cost as much to decode."""
    random = np.random.default_rng(0)
    out = []
    for width, height in MADE_SIZES * 4:
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))[..., None]
        frequency[0, 0] = np.inf
        spectrum = np.fft.rfft2(random.standard_normal((height, width, 3)), axes=(0, 1)) / frequency**1.4
        waves = np.fft.irfft2(spectrum, (height, width), axes=(0, 1))
        pixels = np.clip(128 + 50 * waves / waves.std(), 0, 255).astype(np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=92)
        out.append(file.getvalue())
    return out


def _measure(data: list[bytes], size: int, repeats: int) -> Line:
    rule = BucketRule(kind="square", resolution=size)
    paths: list[Callable[[bytes], Pixels]] = [
        lambda encoded: load_pixels(encoded, rule, MAX_PIXELS).data,
        lambda encoded: adm(encoded, size),
    ]
    best = np.full((len(data), len(paths)), np.inf)
    for repeat in range(repeats):
        for first in range(0, len(data), CHUNK):
            for which in (0, 1) if repeat % 2 else (1, 0):
                for i, encoded in enumerate(data[first : first + CHUNK], first):
                    start = time.process_time()
                    paths[which](encoded)
                    best[i, which] = min(best[i, which], time.process_time() - start)
    errors = [_rms(paths[0](encoded), exact(encoded, rule)) for encoded in data]
    ours, theirs = best.sum(axis=0).tolist()
    return Line(size, ours, theirs, float(np.mean(errors)), max(errors))


def adm(encoded: bytes, size: int) -> Pixels:
    """As DiT, EDM2 and efficientvit load an image: PIL, RGB, ADM's center_crop_arr."""
    image = Image.open(BytesIO(encoded)).convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    resized = round(image.width * scale), round(image.height * scale)
    pixels = np.array(image.resize(resized, resample=Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def exact(encoded: bytes, rule: BucketRule) -> Pixels:
    """Every pixel decoded, one Lanczos resample by Pillow, in the order and colours of load_pixels."""
    image = Image.open(BytesIO(encoded))
    image.load()
    image, transform = flatten(ImageOps.exif_transpose(image))
    bucket, crop = bucket_for(image.height, image.width, rule)
    down, across = image.height / crop.resized_height, image.width / crop.resized_width
    left, top = crop.left * across, crop.top * down
    box = (left, top, left + bucket.width * across, top + bucket.height * down)
    resized = image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box)
    return to_srgb(np.array(resized).reshape(bucket.height, bucket.width, -1), transform)


def _rms(a: Pixels, b: Pixels) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float32) - b) ** 2)))


def _show(lines: list[Line], data: list[bytes], options: argparse.Namespace, target: float) -> None:
    size = sum(map(len, data)) / len(data) / 1000
    print(
        f"{len(data)} images of {size:.0f} KB, one thread; Pillow {version('pillow')} "
        f"(libjpeg-turbo {features.version('libjpeg_turbo')}), numpy {np.__version__}, "
        f"Python {platform.python_version()}; best of {options.repeats} turns, CPU time\n"
    )
    print("| size | images/s | PIL + ADM | ratio | rms from exact, mean | largest |")
    print("|---|---|---|---|---|---|")
    for line in lines:
        print(
            f"| {line.size} | {len(data) / line.ours:.0f} | {len(data) / line.adm:.0f} | {line.adm / line.ours:.2f} "
            f"| {line.mean_error:.2f}/255 | {line.max_error:.2f}/255 |"
        )
    print()
    for line in lines:
        which = f"at {line.size} px, {len(data)} images of {size:.0f} KB"
        judge(f"times PIL + ADM {which}", line.adm / line.ours, ">=", target)
        judge(f"largest rms error {which}", line.max_error, "<", ERROR_TARGET)
