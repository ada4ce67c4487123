"""Photos in memory and random crops of them, so that loading costs a training step nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
Photo = NDArray[np.uint8]


def list_photos(folder: Path) -> list[Path]:
    """Every picture below the folder, in an order that doesn't depend on the file system."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def split_photos(paths: list[Path], held_out: int, seed: int) -> tuple[list[Path], list[Path]]:
    """(train, held out), drawn by the seed: choices between variants are made on photos never trained on."""
    shuffled = paths.copy()
    random.Random(seed).shuffle(shuffled)
    return sorted(shuffled[held_out:]), sorted(shuffled[:held_out])


def load_photo(path: Path, short_side: int | None = None) -> Photo:
    """RGB uint8 [H, W, 3], resized by Lanczos to the short side if one is given."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    if short_side is not None and min(rgb.size) != short_side:
        scale = short_side / min(rgb.size)
        rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.LANCZOS)
    return np.asarray(rgb)


def load_pool(paths: list[Path], short_sides: tuple[int | None, ...], smallest: int) -> list[Photo]:
    """Each photo at each size, decoded once; sizes that would enlarge it or fall short of a crop are left out."""

    def load(path: Path) -> list[Photo]:
        native = load_photo(path)
        sides = [side for side in short_sides if side is None or side < 0.9 * min(native.shape[:2])]
        versions = [native if side is None else load_photo(path, side) for side in sides]
        return [photo for photo in versions if min(photo.shape[:2]) >= smallest]

    with ThreadPoolExecutor() as pool:
        return [photo for versions in pool.map(load, paths) for photo in versions]


def draw_crops(pool: list[Photo], rng: np.random.Generator, count: int, size: int) -> Tensor:
    """Random crops, flipped and transposed at random: uint8 [count, 3, size, size], channels last in memory."""
    crops = np.empty((count, size, size, 3), np.uint8)
    for row in range(count):
        photo = pool[rng.integers(len(pool))]
        top, left = (rng.integers(side - size + 1) for side in photo.shape[:2])
        crop = photo[top : top + size, left : left + size]
        mirror, turn = rng.random(2) < (0.5, 0.25)
        crop = crop[:, ::-1] if mirror else crop
        crops[row] = crop.transpose(1, 0, 2) if turn else crop
    return torch.from_numpy(crops).movedim(-1, 1)


def whole_photos(paths: list[Path], short_side: int | None, multiple: int = 32) -> Iterator[Tensor]:
    """Photos centre-cropped to multiples of 32, one at a time: uint8 [1, 3, H, W]."""
    for path in paths:
        photo = load_photo(path, short_side)
        height, width = (side // multiple * multiple for side in photo.shape[:2])
        if not height or not width:
            continue
        top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
        crop = np.ascontiguousarray(photo[top : top + height, left : left + width].transpose(2, 0, 1))
        yield torch.from_numpy(crop)[None]
