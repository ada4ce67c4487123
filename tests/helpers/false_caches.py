"""Caches made wrong on purpose, with every hash and sum set right afterwards: only a look at the images shows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load

from dcae_cache.cache.index import load_index, save_index
from dcae_cache.cache.moments import ChannelMoments
from dcae_cache.cache.parts import read_part_info, shard_path, table_path
from dcae_cache.cache.safetensors_io import write_safetensors
from dcae_cache.files import sha256_of_file

Tensors = dict[str, torch.Tensor]


def rewrite(cache: Path, part: str, change: Callable[[Tensors], object]) -> None:
    """Change a part's tensors and make every recorded hash and size agree with the result, but no sum."""
    tensors = load(shard_path(cache, part).read_bytes())
    change(tensors)
    with shard_path(cache, part).open("wb") as file:
        sha256, num_bytes = write_safetensors(file, tensors, {})
    table = pq.read_table(table_path(cache, part))
    _write_table(cache, part, table, {"shard_sha256": sha256, "shard_num_bytes": str(num_bytes)})


def falsify(cache: Path, part: str, change: Callable[[Tensors], object]) -> None:
    """``rewrite``, and make the recorded sums and statistics agree, too."""
    rewrite(cache, part, change)
    tensors = load(shard_path(cache, part).read_bytes())
    plain = [tensor for name, tensor in sorted(tensors.items()) if name.startswith("latents.")]
    moments = ChannelMoments.of(plain, plain[0].shape[1])
    _write_table(
        cache, part, pq.read_table(table_path(cache, part)), {"channel_moments": json.dumps(moments.to_json())}
    )
    index = load_index(cache)
    infos = [read_part_info(cache, entry["name"]) for entry in index["parts"]]
    merged = ChannelMoments.merge([info.moments for info in infos if info], index["latent"]["channels"])
    index["statistics"] = {"count": merged.count, "mean": merged.mean, "std": merged.std}
    save_index(cache, index)


def change_rows(cache: Path, part: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the lines of a part's table."""
    table = pq.read_table(table_path(cache, part))
    rows = table.to_pylist()
    change(rows)
    _write_table(cache, part, pa.Table.from_pylist(rows, table.schema), {})


def _write_table(cache: Path, part: str, table: pa.Table, values: Mapping[str, str]) -> None:
    metadata = table.schema.metadata | {
        f"dcae_cache.{name}".encode(): value.encode() for name, value in values.items()
    }
    pq.write_table(table.replace_schema_metadata(metadata), table_path(cache, part))
    index = load_index(cache)
    for entry in index["parts"]:
        if entry["name"] == part:
            num_bytes = shard_path(cache, part).stat().st_size
            index["totals"]["num_bytes"] += num_bytes - entry["num_bytes"]
            sha256, table_sha256 = sha256_of_file(shard_path(cache, part)), sha256_of_file(table_path(cache, part))
            entry.update(sha256=sha256, num_bytes=num_bytes, table_sha256=table_sha256)
    save_index(cache, index)
