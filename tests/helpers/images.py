"""Images made on the spot, small folders of them, and short ways to encode."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from dcae_cache.config import EncodeConfig, RunOptions
from dcae_cache.encode.pipeline import Summary, encode_dataset

SIZES = ((300, 200), (200, 300), (256, 256), (640, 480), (90, 400), (333, 333))  # height, width


def make_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth coloured picture with some texture, different for each seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((picture + random.integers(-12, 13, picture.shape)).clip(0, 255).astype(np.uint8))


def encoded_image(height: int, width: int, seed: int = 0, kind: str = "JPEG") -> bytes:
    """The bytes of such a picture as a file."""
    buffer = io.BytesIO()
    make_image(height, width, seed).save(buffer, kind, quality=92)
    return buffer.getvalue()


def make_folder(root: Path, count: int, first: int = 0) -> Path:
    """``count`` JPEGs of mixed sizes in ``root``, two folders deep, named by their number from ``first``."""
    for number in range(first, first + count):
        path = root / f"class{number % 3}" / f"img{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_image(*SIZES[number % len(SIZES)], seed=number))
    return root


def tiny_config(**changes: object) -> EncodeConfig:
    """A recipe that is quick on a CPU: the shipped model at 128 pixels in fp32."""
    settings: dict[str, object] = {"model": "f32c32-tiny", "resolution": 128, "bucket_step": 64, "dtype": "fp32"}
    return EncodeConfig(**(settings | {"max_aspect": 2.0} | changes))  # type: ignore[arg-type]


def encode(source: Path, out: Path, *, part_size: int = 8, batch_size: int = 3, **recipe: object) -> Summary:
    """Encode with that recipe in small parts and batches."""
    options = RunOptions(device="cpu", workers=2, part_size=part_size, batch_size=batch_size)
    return encode_dataset(source, out, tiny_config(**recipe), options)
