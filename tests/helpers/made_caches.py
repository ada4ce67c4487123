"""Caches written without encoding anything: right in format, with latents and rows that can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dcae_cache.cache.index import CacheFacts, build_index, save_index
from dcae_cache.cache.parts import PARTS_FOLDER, PartContent, PartInfo, commit_part, shard_header, tensor_name
from dcae_cache.records import Bucket, Origin, Row

RECIPE = {
    "format_version": 1,
    "model": "made",
    "repo_id": None,
    "revision": None,
    "weights_sha256": "0" * 64,
    "spatial_compression_ratio": 32,
    "latent_channels": 4,
    "scaling_factor": 0.5,
    "dtype": "bf16",
    "flip": False,
}


def make_cache(folder: Path, num_parts: int, part_size: int, sides: Sequence[tuple[int, int]] = ((64, 64),)) -> Path:
    """A cache of ``num_parts`` parts; the rows of each take turns among the buckets ``sides`` (pixels).

    Sample n has the key "n", the caption "caption n", the label n % 10, and latents that all equal n % 128.
    """
    (folder / PARTS_FOLDER).mkdir(parents=True)
    infos = [_make_part(folder, number, part_size, sides) for number in range(num_parts)]
    facts = CacheFacts(
        creator="tests", origin=Origin("made"), recipe=RECIPE, fingerprint="f" * 64, num_planned=num_parts
    )
    save_index(folder, build_index(folder, facts, infos))
    return folder


def _make_part(folder: Path, number: int, size: int, sides: Sequence[tuple[int, int]]) -> PartInfo:
    rows: list[Row] = []
    values: dict[tuple[int, int], list[int]] = {}
    for sample in range(number * size, (number + 1) * size):
        height, width = sides[sample % len(sides)]
        row = len(values.setdefault((height, width), []))
        values[height, width].append(sample % 128)
        rows.append(_row(sample, Bucket(height, width), row))
    tensors = {
        tensor_name(height // 32, width // 32): torch.tensor(found, dtype=torch.bfloat16)
        .view(-1, 1, 1, 1)
        .expand(-1, 4, height // 32, width // 32)
        for (height, width), found in values.items()
    }
    content = PartContent(name=f"part-{number:06d}", entries_sha256="e" * 64, rows=rows, tensors=tensors)
    return commit_part(folder, content, shard_header(RECIPE, "f" * 64), RECIPE["latent_channels"])


def _row(sample: int, bucket: Bucket, row: int) -> Row:
    return Row(
        key=str(sample),
        status="ok",
        bucket_height=bucket.height,
        bucket_width=bucket.width,
        row=row,
        height=bucket.height,
        width=bucket.width,
        resized_height=bucket.height,
        resized_width=bucket.width,
        crop_top=0,
        crop_left=0,
        caption=f"caption {sample}",
        label=str(sample % 10),
        source=f"{sample}.jpg",
    )
