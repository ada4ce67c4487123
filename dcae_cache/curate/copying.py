"""A new cache out of rows of others: which parts it gets, and how each is copied and checked on the way.

A part that is taken whole keeps its shard byte for byte; of any other the chosen rows are gathered. Shards are hashed
while they are read. The same call again goes on behind the last part that was committed. Knows nothing of sources,
models or images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ..cache.commits import split_by_commit
from ..cache.finalize import index_of, write_index
from ..cache.index import load_index
from ..cache.locks import locked
from ..cache.pages import Pages
from ..cache.parts import (
    PARTS_FOLDER,
    PartContent,
    PartInfo,
    commit_part,
    read_part_info,
    read_rows,
    shard_header,
    shard_path,
    tensor_name,
    write_table,
)
from ..cache.plan import PLAN_SCHEMA, Plan, entries_digest, load_plan
from ..cache.recipe import fingerprint
from ..cache.safetensors_io import map_safetensors
from ..errors import CacheError, UsageError, one_line
from ..files import make_folder, remove_temporary_files, replace_atomically
from ..records import Entry, Origin, Part, Row, part_name, part_number

_FIELDS = tuple(item.name for item in fields(Row))
_BLOCK = 2**22  # bytes copied at once


@dataclass(frozen=True, slots=True)
class OpenCache:
    """A finished cache whose rows are to be copied."""

    folder: Path
    index: Mapping[str, Any]
    plan: Plan

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe it was made with."""
        recipe: Mapping[str, Any] = self.index["recipe"]
        return recipe


@dataclass(frozen=True, slots=True)
class Taken:
    """A part of a cache, or some of its rows: ``keys`` None takes it whole, skipped rows too. ``images``: the keys of
    the images of these rows."""

    cache: OpenCache
    name: str
    keys: frozenset[str] | None = None
    images: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySummary:
    """What a new cache holds."""

    out: str
    num_samples: int
    num_parts: int
    parts_reused: int  # that an earlier call of the same kind had copied already


def open_cache(folder: str | Path) -> OpenCache:
    """A cache to copy from. Raises CacheError where it isn't whole."""
    path = Path(folder)
    index = load_index(path)
    plan = load_plan(path)
    if plan is None or not index["complete"]:
        raise CacheError(f"{path} is not complete. Finish it with the encode command it was begun with.")
    return OpenCache(path, index, plan)


def copy_parts(
    taken: Sequence[Taken],
    out: str | Path,
    origin: Origin,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CopySummary:
    """Make the cache ``out`` of these parts, in this order. ``progress`` hears (parts done, of how many).

    Raises UsageError for a folder that holds something else or another choice, CacheError for a shard that isn't what
    its table says; what was copied before stays.
    """
    folder = Path(out)
    recipe = taken[0].cache.recipe
    entries = [_entries(part) for part in taken]
    plan = _plan_of(entries, recipe, origin)
    _refuse_other_content(folder, plan)
    make_folder(folder / PARTS_FOLDER)
    with locked(folder):
        remove_temporary_files(folder)
        remove_temporary_files(folder / PARTS_FOLDER)
        plan.save(folder)
        done, todo = split_by_commit(plan, folder, fingerprint(recipe))
        for count, number in enumerate(todo):
            progress(len(done) + count, len(taken))
            _copy(taken[number], Part(number, entries[number]), folder)
        infos = split_by_commit(plan, folder, fingerprint(recipe))[0]
        index = index_of(folder, plan, recipe, infos)
        write_index(folder, index, infos)
    progress(len(taken), len(taken))
    return CopySummary(
        out=str(folder),
        num_samples=index["totals"]["num_samples"],
        num_parts=len(infos),
        parts_reused=len(done),
    )


def _entries(taken: Taken) -> tuple[Entry, ...]:
    """The planned entries of a part that stay: where each is a sample, those of the keys; else (input tars) all."""
    entries = taken.cache.plan.part(part_number(taken.name)).entries
    if taken.keys is None:
        return entries
    kept = tuple(entry for entry in entries if entry.key in taken.images)
    return kept or entries


def _plan_of(entries: Sequence[tuple[Entry, ...]], recipe: Mapping[str, Any], origin: Origin) -> Plan:
    """Input tars of merged caches may have one name: keys of entries, unlike those of samples, may repeat."""
    rows = [{"part": number, **entry._asdict()} for number, part in enumerate(entries) for entry in part]
    table = pa.Table.from_pylist(rows, PLAN_SCHEMA)
    return Plan(Pages.of_table(table), recipe, origin)


def _refuse_other_content(folder: Path, plan: Plan) -> None:
    known = load_plan(folder) if folder.is_dir() else None
    if known is not None:
        if (known.table, known.origin, dict(known.recipe)) != (plan.table, plan.origin, dict(plan.recipe)):
            raise UsageError(f"`out` {folder} is another cache already. Nothing was changed; choose another folder.")
    elif folder.exists() and not folder.is_dir():
        raise UsageError(f"`out` {folder} is a file; expected a folder that doesn't exist yet, or an empty one.")
    elif folder.exists() and any(path.name[0] != "." and path.name != PARTS_FOLDER for path in folder.iterdir()):
        raise UsageError(
            f"`out` {folder} holds other files and is no cache. Nothing was written; choose another folder."
        )


def _copy(taken: Taken, part: Part, out: Path) -> None:
    source, name = taken.cache.folder, part_name(part.number)
    info = read_part_info(source, taken.name)
    if info is None:
        raise CacheError(f"{source} lacks {taken.name}, which its index lists. Run its encode command again.")
    rows = [
        Row(**{column: values[column] for column in _FIELDS}) for values in read_rows(source, taken.name).to_pylist()
    ]
    if taken.keys is None:
        _copy_shard(shard_path(source, taken.name), shard_path(out, name), info)
        write_table(out, replace(info, name=name, entries_sha256=entries_digest(part)), rows)
        return
    kept, tensors = _gather(taken, rows, info)
    header = shard_header(taken.cache.recipe, info.fingerprint)
    content = PartContent(name=name, entries_sha256=entries_digest(part), rows=kept, tensors=tensors)
    commit_part(out, content, header, taken.cache.recipe["latent_channels"])


def _copy_shard(source: Path, target: Path, info: PartInfo) -> None:
    """Copy a shard byte for byte. Raises CacheError where it isn't the one its table was written for."""
    digest = hashlib.sha256()
    with _open(source) as read, replace_atomically(target) as write:
        while block := read.read(_BLOCK):
            digest.update(block)
            write.write(block)
        _check(digest.hexdigest(), source, info)


def _open(shard: Path) -> BufferedReader:
    try:
        return shard.open("rb")
    except OSError as error:
        raise CacheError(
            f"{shard} can't be read: {one_line(error)}. Mend it by running its encode command."
        ) from error


def _check(sha256: str, path: Path, info: PartInfo) -> None:
    if sha256 != info.shard_sha256:
        raise CacheError(
            f"{path} has sha256 {sha256}, expected {info.shard_sha256}: it is damaged. Mend it by running its encode "
            "command with --repair."
        )


def _gather(taken: Taken, rows: Sequence[Row], info: PartInfo) -> tuple[list[Row], dict[str, Tensor]]:
    """The chosen rows, numbered anew, and their latents."""
    assert taken.keys is not None
    path, ratio = shard_path(taken.cache.folder, taken.name), taken.cache.recipe["spatial_compression_ratio"]
    with _open(path) as file:
        _check(hashlib.file_digest(file, "sha256").hexdigest(), path, info)
    stored = map_safetensors(path)
    kept: list[Row] = []
    chosen: dict[str, list[int]] = {}
    for row in rows:
        if row.status != "ok" or row.key not in taken.keys or row.bucket is None or row.row is None:
            continue
        name = tensor_name(row.bucket.height // ratio, row.bucket.width // ratio)
        numbers = chosen.setdefault(name, [])
        numbers.append(row.row)
        kept.append(replace(row, row=len(numbers) - 1))
    tensors: dict[str, Tensor] = {}
    for name, numbers in chosen.items():
        which = torch.tensor(numbers)
        flipped = name.replace("latents.", "latents_flip.", 1)
        tensors |= {other: stored[other][which] for other in (name, flipped) if other in stored}
    return kept, tensors
