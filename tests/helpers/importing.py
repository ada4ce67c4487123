"""Imports in tests: take a folder in, and look at what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcae_cache import LatentDataset
from dcae_cache.cache.index import load_index
from dcae_cache.cache.integrity import check_integrity
from dcae_cache.importing.run import ImportRequest, ImportSummary, import_cache

TINY = "f32c32-tiny"


def take_in(folder: Path, out: Path, kind: str, scaled: bool, **options: Any) -> ImportSummary:
    return import_cache(folder, out, ImportRequest(kind=kind, model=TINY, scaled=scaled, **options))


def latents_of(cache: Path, **options: Any) -> list[torch.Tensor]:
    dataset = LatentDataset(cache, **options)
    return [dataset[number]["latents"] for number in range(len(dataset))]


def rows_of(cache: Path) -> dict[str, dict[str, Any]]:
    dataset = LatentDataset(cache, columns=("key", "label", "caption", "attributes", "height", "width"))
    return {row["key"]: row for row in (dataset.describe(number) for number in range(len(dataset)))}


def assert_sound(cache: Path) -> None:
    assert check_integrity(cache) == []
    assert load_index(cache)["complete"] is True


def make_npy(root: Path, *, std: float = 1.0, channels: int = 32, dtype: str = "float32", count: int = 8) -> list[Any]:
    random = np.random.default_rng(0)
    values = random.standard_normal((count, channels, 4, 4))
    arrays = list((std * values / values.std()).astype(dtype))
    (root / "a").mkdir(parents=True)
    for number, array in enumerate(arrays):
        np.save(root / "a" / f"{number}.npy", array)
    return arrays
