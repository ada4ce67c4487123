"""index.json: what a cache is and what it holds, derived from the committed parts and from nothing else.

It is written last and can be rebuilt at any time; losing it loses nothing. Knows nothing of models or sources beyond
what the recipe says.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CacheError, DamagedIndexError, one_line
from ..files import open_regular, replace_atomically, sha256_of_file
from ..records import FORMAT_NAME, FORMAT_VERSION, Origin
from ..text import parse_json
from .moments import ChannelMoments
from .parts import PartInfo, table_path
from .plan import PLAN_NAME
from .recipe import RECIPE_SHAPE
from .shape import COUNT, NUMBER, Shape, between, check_shape, mapping_of, matching, one_of, optional

INDEX_NAME = "index.json"
_REBUILD = "Running encode again rebuilds it from the parts."
_BUCKETS = mapping_of(matching(r"[1-9]\d{0,5}x[1-9]\d{0,5}"), COUNT)
_SHAPE: Shape = {  # names of files are built from it, and loops run over it: nothing of it is taken on trust
    "complete": bool,
    "source": {"uri": str, "options": dict},
    "fingerprint": str,
    "recipe": RECIPE_SHAPE,
    "model": {"name": str, "repo_id": optional(str), "revision": optional(str), "weights_sha256": optional(str)},
    "latent": {
        "channels": between(1, 2**16),
        "spatial_compression_ratio": between(1, 2**12),
        "dtype": one_of("bf16", "fp16", "fp32"),
        "scaling_factor": NUMBER,
    },
    "totals": dict.fromkeys(("num_parts", "num_samples", "num_skipped", "num_bytes"), COUNT),
    "skipped": mapping_of(lambda name: isinstance(name, str), COUNT),
    "buckets": _BUCKETS,
    "statistics": {"count": COUNT, "mean": [NUMBER], "std": [NUMBER]},
    "parts": [
        {
            "name": matching(r"part-\d{6,9}"),
            **dict.fromkeys(("num_samples", "num_skipped", "num_bytes"), COUNT),
            **dict.fromkeys(("sha256", "table_sha256"), str),
            "buckets": _BUCKETS,
        }
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFacts:
    """What the parts themselves don't say of their cache."""

    creator: str
    origin: Origin
    recipe: Mapping[str, Any]
    fingerprint: str
    num_planned: int  # parts


def build_index(cache: Path, facts: CacheFacts, parts: Sequence[PartInfo]) -> dict[str, Any]:
    """The index of the given committed parts, as JSON values (docs/format.md)."""
    recipe = facts.recipe
    channels = recipe["latent_channels"]
    moments = ChannelMoments.merge([part.moments for part in parts], channels)
    skipped: Counter[str] = Counter()
    buckets: Counter[str] = Counter()
    for part in parts:
        skipped.update(part.skipped)
        buckets.update(part.buckets)
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "creator": facts.creator,
        "complete": len(parts) == facts.num_planned,
        "source": {"uri": facts.origin.uri, "options": dict(facts.origin.options)},
        "fingerprint": facts.fingerprint,
        "recipe": dict(recipe),
        "model": {
            "name": recipe["model"],
            "repo_id": recipe["repo_id"],
            "revision": recipe["revision"],
            "weights_sha256": recipe["weights_sha256"],
        },
        "latent": {
            "channels": channels,
            "spatial_compression_ratio": recipe["spatial_compression_ratio"],
            "dtype": recipe["dtype"],
            "scaled": True,
            "scaling_factor": recipe["scaling_factor"],
            "shift": 0.0,
        },
        "totals": {
            **_views(parts),
            "num_parts": len(parts),
            "num_samples": sum(part.num_samples for part in parts),
            "num_skipped": skipped.total(),
            "num_bytes": sum(part.shard_num_bytes for part in parts),
        },
        "skipped": dict(sorted(skipped.items())),
        "buckets": dict(sorted(buckets.items())),
        "statistics": {"count": moments.count, "mean": moments.mean, "std": moments.std},
        "plan_sha256": sha256_of_file(cache / PLAN_NAME) if (cache / PLAN_NAME).exists() else None,
        "parts": [_part_entry(cache, part) for part in parts],
    }


def _views(parts: Sequence[PartInfo]) -> dict[str, int]:
    """Images, and sizes they are too small for, where images may have several rows."""
    if not any(part.views for part in parts):
        return {}
    left_out = sum(part.views.left_out for part in parts if part.views)
    return {"num_images": sum(part.num_images for part in parts), "num_left_out": left_out}


def checksum(index: Mapping[str, Any]) -> str:
    """sha256 over everything else the index says, as JSON with sorted keys and no spaces."""
    values = {name: value for name, value in index.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _part_entry(cache: Path, part: PartInfo) -> dict[str, Any]:
    return {
        "name": part.name,
        "num_samples": part.num_samples,
        "num_skipped": part.num_skipped,
        "num_bytes": part.shard_num_bytes,
        "sha256": part.shard_sha256,
        "table_sha256": (part.table and part.table.sha256) or sha256_of_file(table_path(cache, part.name)),
        "buckets": dict(part.buckets),
    }


def save_index(cache: Path, index: Mapping[str, Any]) -> None:
    """Write index.json, whole or not at all."""
    with replace_atomically(cache / INDEX_NAME) as file:
        file.write(json.dumps({**index, "checksum": checksum(index)}, indent=1, ensure_ascii=False).encode() + b"\n")


def load_index(cache: Path) -> dict[str, Any]:
    """The index of a cache. Raises CacheError when there is none, or none of this format."""
    path = cache / INDEX_NAME
    try:
        with open_regular(path) as file:
            data = file.read()
    except FileNotFoundError as error:
        found = "the folder doesn't exist" if not cache.is_dir() else "it has no index.json"
        raise CacheError(
            f"{cache} is not a finished cache: {found}. Make one with: dcae-cache encode SOURCE --out {cache}"
        ) from error
    except OSError as error:
        raise DamagedIndexError(f"{path} can't be read: {one_line(error)}. {_REBUILD}") from error
    return parse_index(data, str(path))


def parse_index(data: bytes, place: str) -> dict[str, Any]:
    """The index that the bytes of an index.json hold; ``place`` names it in messages. Errors as ``load_index``."""
    try:
        index = parse_json(data)
    except ValueError as error:
        raise DamagedIndexError(f"{place} can't be read: {one_line(error)}. {_REBUILD}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT_NAME:
        raise DamagedIndexError(f"{place} is not an index of {FORMAT_NAME}. {_REBUILD}")
    if index.get("version") != FORMAT_VERSION:
        raise CacheError(f"{place} is of version {index.get('version')}; this release reads version {FORMAT_VERSION}.")
    if index.get("checksum") != checksum(index):
        raise DamagedIndexError(f"{place} is damaged: its checksum is not that of its content. {_REBUILD}")
    try:
        check_shape(index, _SHAPE, INDEX_NAME)
    except ValueError as error:
        raise DamagedIndexError(f"{place} is not an index of {FORMAT_NAME}: {error}. {_REBUILD}") from error
    return index
