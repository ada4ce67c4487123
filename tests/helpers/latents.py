"""Caches made without a model: latents that tell which sample they are of, rows as a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dcae_cache.cache.index import CacheFacts, build_index, save_index
from dcae_cache.cache.parts import PARTS_FOLDER, PartContent, PartInfo, commit_part, shard_header, tensor_name
from dcae_cache.cache.recipe import ModelIdentity, fingerprint, recipe_of
from dcae_cache.config import EncodeConfig
from dcae_cache.records import Origin, Row, part_name

RATIO, CHANNELS = 32, 4
Describe = Callable[[int], Mapping[str, Any]]


def make_cache(
    folder: Path,
    parts: Sequence[Mapping[tuple[int, int], int]],
    *,
    describe: Describe = lambda number: {},
    flip: bool = False,
    weights: str = "w",
) -> Path:
    """A cache of so many samples of each bucket in each part. Sample n's latents are all n (mirrored: -n), its key is
    k and n; ``describe(n)`` may give more columns of its row."""
    (folder / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
    identity = ModelIdentity("none", None, None, weights, RATIO, CHANNELS, 0.5)
    recipe = recipe_of(EncodeConfig(model="none", dtype="fp32", flip=flip), identity)
    infos: list[PartInfo] = []
    first = 0
    with patch("os.fsync"):  # thousands of small files take minutes otherwise
        for number, buckets in enumerate(parts):
            content, first = _part(part_name(number), buckets, first, describe, flip)
            infos.append(commit_part(folder, content, shard_header(recipe, fingerprint(recipe)), CHANNELS))
    facts = CacheFacts(
        creator="tests",
        origin=Origin("nowhere"),
        recipe=recipe,
        fingerprint=fingerprint(recipe),
        num_planned=len(infos),
    )
    save_index(folder, build_index(folder, facts, infos))
    return folder


def _part(
    name: str, buckets: Mapping[tuple[int, int], int], first: int, describe: Describe, flip: bool
) -> tuple[PartContent, int]:
    rows, tensors = [], {}
    for (height, width), count in sorted(buckets.items()):
        values = torch.arange(first, first + count, dtype=torch.float32).view(-1, 1, 1, 1)
        cells = height // RATIO, width // RATIO
        tensors[tensor_name(*cells)] = values.expand(-1, CHANNELS, *cells).contiguous()
        if flip:
            tensors[tensor_name(*cells, flip=True)] = -tensors[tensor_name(*cells)]
        for row in range(count):
            sizes = {"bucket_height": height, "bucket_width": width, "height": 2 * height, "width": 2 * width}
            place = {"row": row, "crop_top": 1, "crop_left": 2}
            given = {"key": f"k{first + row}", "source": f"{first + row}.jpg", **sizes, **place}
            rows.append(Row(**{"status": "ok", **given, **describe(first + row)}))
        first += count
    return PartContent(name=name, entries_sha256="none", rows=rows, tensors=tensors), first
