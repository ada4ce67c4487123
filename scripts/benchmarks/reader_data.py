"""The same samples in every format that ``scripts/bench reader`` compares, written without encoding anything.

Latents are random bits in two shapes with as many cells; captions have about 80 characters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dcae_cache.cache.index import CacheFacts, build_index, load_index, save_index
from dcae_cache.cache.parts import (
    PARTS_FOLDER,
    PartContent,
    PartInfo,
    commit_part,
    shard_header,
    shard_path,
    table_path,
    tensor_name,
)
from dcae_cache.cache.recipe import ModelIdentity, recipe_of
from dcae_cache.config import EncodeConfig
from dcae_cache.records import Origin, Row

CHANNELS = 32
RECIPE = recipe_of(
    EncodeConfig(model="made", dtype="bf16"), ModelIdentity("made", None, None, "0" * 64, 32, CHANNELS, 0.5)
)
PRINT = "f" * 64


@dataclass(frozen=True, slots=True)
class Shape:
    """What to write. ``cells``: the sides of the first bucket in latent cells; the second has twice and half."""

    samples: int
    cells: int
    part_size: int

    @property
    def buckets(self) -> list[tuple[int, int]]:
        return [(self.cells, self.cells), (2 * self.cells, self.cells // 2)]

    @property
    def sample_bytes(self) -> int:
        return CHANNELS * self.cells**2 * 2


def caption(number: int) -> str:
    """About as long as captions are."""
    return f"sample {number}: a photo of a street at night, wet asphalt, two people under one umbrella"


def _chunks(shape: Shape) -> Iterator[tuple[int, int]]:
    for first in range(0, shape.samples, shape.part_size):
        yield first, min(shape.part_size, shape.samples - first)


def _latents(seed: int, count: int, bucket: tuple[int, int]) -> torch.Tensor:
    bits = np.random.default_rng(seed).integers(0, 2**14, (count, CHANNELS, *bucket), np.int16)  # finite in any dtype
    return torch.from_numpy(bits).view(torch.bfloat16)


def write_cache(folder: Path, shape: Shape) -> None:
    """A cache; within a part the samples take turns among the buckets."""
    (folder / PARTS_FOLDER).mkdir(parents=True)
    infos = [_write_part(folder, part, shape, *chunk) for part, chunk in enumerate(_chunks(shape))]
    facts = CacheFacts(
        creator="bench", origin=Origin("made"), recipe=RECIPE, fingerprint=PRINT, num_planned=len(infos)
    )
    save_index(folder, build_index(folder, facts, infos))


def _write_part(folder: Path, part: int, shape: Shape, first: int, count: int) -> PartInfo:
    rows, tensors = [], {}
    for which, bucket in enumerate(shape.buckets):
        numbers = range(first + which, first + count, 2)
        tensors[tensor_name(*bucket)] = _latents(2 * part + which, len(numbers), bucket)
        rows += [_row(number, row, (32 * bucket[0], 32 * bucket[1])) for row, number in enumerate(numbers)]
    rows.sort(key=lambda row: row.key)
    content = PartContent(name=f"part-{part:06d}", entries_sha256="e" * 64, rows=rows, tensors=tensors)
    return commit_part(folder, content, shard_header(RECIPE, PRINT), CHANNELS)


def _row(number: int, row: int, bucket: tuple[int, int]) -> Row:
    return Row(
        key=f"{number:09d}",
        status="ok",
        bucket_height=bucket[0],
        bucket_width=bucket[1],
        row=row,
        height=bucket[0],
        width=bucket[1],
        resized_height=bucket[0],
        resized_width=bucket[1],
        crop_top=0,
        crop_left=0,
        caption=caption(number),
        label=str(number % 1000),
        source=f"{number:09d}.jpg",
    )


def write_linked_cache(folder: Path, samples: int, part_size: int) -> None:
    """A cache of very many rows on little disk: one part, linked under as many names as it takes."""
    write_cache(folder, Shape(part_size, 2, part_size))
    index = load_index(folder)
    first = index["parts"][0]
    index["parts"] = [{**first, "name": f"part-{number:06d}"} for number in range(samples // part_size)]
    for entry in index["parts"][1:]:
        for path_of in (shard_path, table_path):
            os.link(path_of(folder, first["name"]), path_of(folder, entry["name"]))
    index["totals"] = {**index["totals"], "num_parts": len(index["parts"]), "num_samples": samples}
    save_index(folder, index)


def _buckets_of(shape: Shape) -> Iterator[tuple[int, tuple[int, int], int]]:
    for which, bucket in enumerate(shape.buckets):
        yield which, bucket, (shape.samples + 1 - which) // 2


def _pieces(shape: Shape, which: int, bucket: tuple[int, int], count: int) -> Iterator[tuple[int, torch.Tensor]]:
    for first in range(0, count, shape.part_size):
        yield first, _latents(which + first, min(shape.part_size, count - first), bucket)


def write_npy(folder: Path, shape: Shape) -> None:
    """One .npy a sample (fp16: numpy has no bf16), a thousand a folder, and the captions in one JSON list."""
    for which, bucket, count in _buckets_of(shape):
        for first, latents in _pieces(shape, which, bucket, count):
            for row, latent in enumerate(latents.view(torch.float16).numpy(), first):
                target = npy_path(folder, which, row)
                target.parent.mkdir(parents=True, exist_ok=True)
                np.save(target, latent)
        write_captions(folder / f"captions-{which}.json", count)


def npy_path(folder: Path, which: int, row: int) -> Path:
    return folder / f"{which}" / f"{row // 1000:06d}" / f"{row:09d}.npy"


def write_captions(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([caption(number) for number in range(count)]))


def write_lightningdit(folder: Path, shape: Shape) -> None:
    """As LightningDiT's extract_features.py: safetensors files of `latents` and `labels`; captions beside them."""
    for which, bucket, count in _buckets_of(shape):
        write_captions(folder / f"captions-{which}.json", count)
        (folder / f"{which}").mkdir(parents=True, exist_ok=True)
        for first, latents in _pieces(shape, which, bucket, count):
            labels = torch.zeros(len(latents), dtype=torch.int64)
            save_file({"latents": latents, "labels": labels}, folder / f"{which}" / f"{first:09d}.safetensors")


def write_limit(folder: Path, shape: Shape) -> None:
    """Nothing but the latents: one flat file a bucket."""
    folder.mkdir(parents=True)
    for which, bucket, count in _buckets_of(shape):
        with (folder / f"{which}.bin").open("wb") as file:
            for _, latents in _pieces(shape, which, bucket, count):
                file.write(latents.view(torch.uint8).numpy().data)


def write_litdata(folder: Path, shape: Shape) -> None:
    """Through litdata's own cache writer, one folder a bucket."""
    from litdata.streaming.cache import Cache

    for which, bucket, count in _buckets_of(shape):
        cache: Any = Cache(str(folder / f"{which}"), chunk_bytes="64MB")
        for first, latents in _pieces(shape, which, bucket, count):
            for row, latent in enumerate(latents.view(torch.float16), first):
                cache[row] = {"latents": latent.clone(), "caption": caption(row)}
        cache.done()
        cache.merge(1)


def write_streaming(folder: Path, shape: Shape) -> None:
    """Through mosaicml-streaming's MDSWriter, one folder a bucket, with its default shard size."""
    from streaming import MDSWriter

    for which, bucket, count in _buckets_of(shape):
        columns = {"latents": f"ndarray:float16:{CHANNELS},{bucket[0]},{bucket[1]}", "caption": "str"}
        with MDSWriter(out=str(folder / f"{which}"), columns=columns) as out:
            for first, latents in _pieces(shape, which, bucket, count):
                for row, latent in enumerate(latents.view(torch.float16).numpy(), first):
                    out.write({"latents": latent, "caption": caption(row)})


WRITERS: dict[str, Callable[[Path, Shape], None]] = {
    "ours": write_cache,
    "npy": write_npy,
    "lightningdit": write_lightningdit,
    "litdata": write_litdata,
    "streaming": write_streaming,
    "limit": write_limit,
}
