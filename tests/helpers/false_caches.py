"""Caches made wrong on purpose, with every hash and sum set right afterwards: only a look at the images shows it."""

from __future__ import annotations

import json
from collections import Counter
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
from dcae_cache.cache.safetensors_io import read_header, write_safetensors
from dcae_cache.files import sha256_of_file

Tensors = dict[str, torch.Tensor]


def rewrite(cache: Path, part: str, change: Callable[[Tensors], object]) -> None:
    """Change a part's tensors and make every recorded hash and size agree with the result, but no sum."""
    tensors = load(shard_path(cache, part).read_bytes())
    change(tensors)
    header = read_header(shard_path(cache, part))
    with shard_path(cache, part).open("wb") as file:
        sha256, num_bytes = write_safetensors(file, tensors, header)
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


def rewrite_header(cache: Path, part: str, changes: Mapping[str, str] | None) -> None:
    """Change what a shard says of itself (None: it says nothing), and make every recorded hash agree."""
    header = {**read_header(shard_path(cache, part)), **changes} if changes is not None else {}
    tensors = load(shard_path(cache, part).read_bytes())
    with shard_path(cache, part).open("wb") as file:
        sha256, num_bytes = write_safetensors(file, tensors, header)
    table = pq.read_table(table_path(cache, part))
    _write_table(cache, part, table, {"shard_sha256": sha256, "shard_num_bytes": str(num_bytes)})


def change_rows(
    cache: Path, part: str, change: Callable[[list[dict[str, Any]]], None], *, recount: bool = False
) -> None:
    """Change the lines of a part's table; with ``recount`` also what table and index count of them."""
    table = pq.read_table(table_path(cache, part))
    rows = table.to_pylist()
    change(rows)
    counts: dict[str, str] = {}
    if recount:
        kept = [row for row in rows if row["status"] == "ok"]
        skipped = dict(Counter(row["reason"] for row in rows if row["status"] != "ok"))
        buckets = dict(Counter(f"{row['bucket_height']}x{row['bucket_width']}" for row in kept))
        counts = {
            "num_samples": str(len(kept)),
            "skipped": json.dumps(skipped),
            "buckets": json.dumps(buckets),
        }
        _recount_index(cache, part, len(kept), skipped, buckets)
    _write_table(cache, part, pa.Table.from_pylist(rows, table.schema), counts)


def _recount_index(cache: Path, part: str, kept: int, skipped: dict[str, int], buckets: dict[str, int]) -> None:
    index = load_index(cache)
    entry = next(entry for entry in index["parts"] if entry["name"] == part)
    turned = sum(skipped.values()) - entry["num_skipped"]
    entry.update(num_samples=kept, num_skipped=sum(skipped.values()), buckets=buckets)
    index["totals"]["num_samples"] = sum(entry["num_samples"] for entry in index["parts"])
    index["totals"]["num_skipped"] += turned
    if turned:
        index["skipped"]["corrupt"] = index["skipped"].get("corrupt", 0) + turned
    total: Counter[str] = Counter()
    for entry in index["parts"]:
        total.update(entry["buckets"])
    index["buckets"] = dict(total)
    save_index(cache, index)


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
