"""Is a cache what its own files say it is? Needs neither source nor model, and runs at the speed of the disk.

Checks every shard against the hash, size and contents its table records, every row against its tensor, and the index
against the parts. Knows nothing of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..compute.devices import TORCH_DTYPES
from ..errors import CacheError, one_line
from ..files import sha256_of_file
from ..records import part_name, part_number
from .index import load_index
from .moments import ChannelMoments
from .parts import PARTS_FOLDER, PartInfo, read_part_info, read_rows, shard_header, shard_path, table_path, tensor_name
from .plan import PLAN_NAME, Plan, entries_digest, load_plan
from .recipe import fingerprint, has_views
from .safetensors_io import map_safetensors, read_header

_REINDEX = "run the same encode command: it writes the index anew"
MEND = "run the same encode command with --repair: it makes broken parts anew"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: where, what, and what mends it."""

    where: str
    what: str
    mend: str = MEND

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({self.mend})"


def check_integrity(
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    shard: Callable[[str], AbstractContextManager[None]] = lambda part: nullcontext(),
) -> list[Finding]:
    """Everything wrong with the cache; empty when it is whole. ``progress`` hears (parts done, parts in all);
    ``shard`` has a part's shard in the folder while it is checked.

    Raises CacheError when there is no readable index to start from.
    """
    index = load_index(cache)
    plan, unplanned = _planned(cache)
    findings = [*_check_index(index), *_check_folder(cache, index, plan), *unplanned]
    moments = []
    keys: set[str] = set()
    for done, entry in enumerate(index["parts"]):
        try:
            with shard(entry["name"]):
                info, found = _check_part(cache, index, entry, keys)
            found += [Finding(entry["name"], what) for what in _check_against_plan(cache, plan, info)]
        except CacheError as error:
            findings.append(Finding(entry["name"], str(error)))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, pa.ArrowException) as error:
            findings.append(Finding(entry["name"], f"its files make no sense: {one_line(error)}"))
        else:
            findings += found
            moments.append(info.moments)
        progress(done + 1, len(index["parts"]))
    findings += _check_totals(index, moments)
    return findings


def _planned(cache: Path) -> tuple[Plan | None, list[Finding]]:
    """The plan, read through once; None, and what is wrong with it, where it is missing or damaged."""
    try:
        plan = load_plan(cache)
        if plan is None:
            return None, [Finding("plan.parquet", "is missing", "encode into a new folder")]
        plan.read_through()
    except CacheError as error:
        return None, [Finding("plan.parquet", str(error), "encode into a new folder")]
    return plan, []


def _check_index(index: dict[str, Any]) -> Iterator[Finding]:
    """The index says some things twice."""
    recipe, model, latent = index["recipe"], index["model"], index["latent"]
    pairs = [
        ("the fingerprint", index["fingerprint"], fingerprint(recipe)),
        ("model.name", model["name"], recipe["model"]),
        ("latent.channels", latent["channels"], recipe["latent_channels"]),
        ("latent.scaled", latent.get("scaled"), True),
        *((f"model.{name}", model[name], recipe[name]) for name in ("repo_id", "revision", "weights_sha256")),
        *(
            (f"latent.{name}", latent[name], recipe[name])
            for name in ("spatial_compression_ratio", "dtype", "scaling_factor")
        ),
    ]
    buckets: Counter[str] = Counter()
    for part in index["parts"]:
        buckets.update(part["buckets"])
    pairs.append(("buckets", index["buckets"], dict(buckets)))
    pairs.append(("skipped", sum(index["skipped"].values()), sum(part["num_skipped"] for part in index["parts"])))
    for name, said, right in pairs:
        if said != right:
            yield Finding("index.json", f"{name} is {said}, its recipe and parts say {right}", _REINDEX)


def _check_folder(cache: Path, index: dict[str, Any], plan: Plan | None) -> Iterator[Finding]:
    """Parts of the plan, of the index and on disk must be the same."""
    indexed = {part["name"] for part in index["parts"]}
    on_disk = {path.stem for path in (cache / PARTS_FOLDER).glob("part-*.parquet")}
    on_disk |= {path.stem for path in (cache / PARTS_FOLDER).glob("part-*.safetensors")}
    for name in sorted(on_disk - indexed):
        yield Finding(name, "on disk, but not in index.json", "run encode again, with --prune if it stays")
    if plan is None:
        return
    if index.get("plan_sha256") != sha256_of_file(cache / PLAN_NAME):
        yield Finding(
            "plan.parquet", "is not the one that the index was written for", "run encode again, or restore a copy"
        )
    planned = {part_name(number) for number in plan.part_numbers}
    for name in sorted(planned - indexed):
        yield Finding(name, "planned, but not finished")
    for name in sorted(indexed - planned):
        yield Finding(name, "in index.json, but not in plan.parquet", "encode into a new folder")


def _check_against_plan(cache: Path, plan: Plan | None, info: PartInfo) -> Iterator[str]:
    """Where every entry is one sample, a part has a row for each, in the plan's order, and no other. (An input tar is
    an entry of many samples: what it holds, only the source knows.)"""
    if plan is None:
        return
    part = plan.part(part_number(info.name))
    planned = [entry.key for entry in part.entries]
    table = read_rows(cache, info.name)
    rows = list(dict.fromkeys(pc.coalesce(table["image"], table["key"]).to_pylist()))  # an image's follow one another
    if entries_digest(part) != info.entries_sha256 or set(planned).isdisjoint(rows) or planned == rows:
        return
    missing, strange = sorted(set(planned) - set(rows)), sorted(set(rows) - set(planned))
    if missing:
        yield f"has no row for {missing[0]!r}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    if strange:
        yield f"has a row for {strange[0]!r}, which isn't planned there"
    if not missing and not strange:
        yield "its rows are not in the order of the plan"


def _check_part(
    cache: Path, index: dict[str, Any], entry: dict[str, Any], keys: set[str]
) -> tuple[PartInfo, list[Finding]]:
    name = entry["name"]
    shard = shard_path(cache, name)
    info = read_part_info(cache, name)
    if info is None:
        raise CacheError("its table is missing")
    if not shard.exists():
        raise CacheError("its shard is missing")
    findings = []
    size, sha256 = shard.stat().st_size, sha256_of_file(shard)
    recorded = (
        ("the shard's size", size, info.shard_num_bytes),
        ("the shard's sha256", sha256, info.shard_sha256),
        ("the shard's sha256 in index.json", sha256, entry["sha256"]),
        ("the table's sha256 in index.json", sha256_of_file(table_path(cache, name)), entry["table_sha256"]),
        ("the recipe's fingerprint", info.fingerprint, index["fingerprint"]),
        ("the number of samples in index.json", info.num_samples, entry["num_samples"]),
        ("the number of skipped samples in index.json", info.num_skipped, entry["num_skipped"]),
        ("the buckets in index.json", dict(info.buckets), entry["buckets"]),
        ("the number of samples", info.num_samples, sum(info.buckets.values())),
        (
            "whether images have several rows",
            info.views is not None,
            has_views(index["recipe"]) and info.num_images > 0,
        ),
    )
    findings += [Finding(name, f"{what} is {now}, recorded {then}") for what, now, then in recorded if now != then]
    if not findings:
        findings += [Finding(name, what) for what in _check_content(cache, index, info, keys)]
    return info, findings


def _check_content(cache: Path, index: dict[str, Any], info: PartInfo, keys: set[str]) -> Iterator[str]:
    """Tensors against the recipe, rows against the tensors, statistics against the values."""
    latent = index["latent"]
    ratio, dtype = latent["spatial_compression_ratio"], TORCH_DTYPES[latent["dtype"]]
    tensors = map_safetensors(shard_path(cache, info.name))
    header = read_header(shard_path(cache, info.name))
    for name, value in shard_header(index["recipe"], info.fingerprint).items():
        if header.get(name) != value:
            yield f"the shard says of itself {name}: {header.get(name)}, its recipe says {value}"
    expected = {}
    for bucket, count in info.buckets.items():
        height, width = (int(side) // ratio for side in bucket.split("x"))
        for flip in (False, True) if index["recipe"]["flip"] else (False,):
            expected[tensor_name(height, width, flip=flip)] = (count, latent["channels"], height, width)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        yield f"the shard holds {found}, its table says {expected}"
        return
    for name, tensor in tensors.items():
        if tensor.dtype != dtype:
            yield f"{name} is {tensor.dtype}, expected {dtype}"
        if not torch.isfinite(tensor).all():
            yield f"{name} holds NaN or Inf"
    plain = [tensor for name, tensor in sorted(tensors.items()) if name.startswith("latents.")]
    if ChannelMoments.of(plain, latent["channels"]) != info.moments:
        yield "the recorded sums per channel are not those of the latents"
    yield from _check_rows(cache, info, keys)


def _check_rows(cache: Path, info: PartInfo, keys: set[str]) -> Iterator[str]:
    places: dict[str, list[int]] = {}
    skipped: Counter[str] = Counter()
    for row in read_rows(cache, info.name).to_pylist():
        if row["key"] in keys:
            yield f"the key {row['key']!r} stands in the cache twice"
        keys.add(row["key"])
        if row["status"] == "ok":
            places.setdefault(f"{row['bucket_height']}x{row['bucket_width']}", []).append(row["row"])
        else:
            skipped[row["reason"] or "unknown"] += 1
    if dict(skipped) != dict(info.skipped):
        yield f"its rows were skipped as {dict(sorted(skipped.items()))}, recorded {dict(info.skipped)}"
    for bucket, count in info.buckets.items():
        if sorted(places.pop(bucket, [])) != list(range(count)):
            yield f"the rows of bucket {bucket} are not 0 to {count - 1}, each once"
    if places:
        yield f"rows of buckets that the part doesn't have: {', '.join(sorted(places))}"


def _check_totals(index: dict[str, Any], moments: list[ChannelMoments]) -> Iterator[Finding]:
    parts = index["parts"]
    sums = {
        "num_parts": len(parts),
        "num_samples": sum(part["num_samples"] for part in parts),
        "num_skipped": sum(part["num_skipped"] for part in parts),
        "num_bytes": sum(part["num_bytes"] for part in parts),
    }
    for name, value in sums.items():
        if index["totals"][name] != value:
            yield Finding("index.json", f"{name} is {index['totals'][name]}, its parts add up to {value}")
    if len(moments) == len(parts):
        merged = ChannelMoments.merge(moments, index["latent"]["channels"])
        if (merged.mean, merged.std) != (index["statistics"]["mean"], index["statistics"]["std"]):
            yield Finding("index.json", "mean and std per channel are not those of the parts")
