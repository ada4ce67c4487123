"""Latents that are in the cache already, for images that a part holds again: unchanged, renamed, or gone meanwhile.

An image is known by the sha256 of its encoded bytes. A stored latent is only ever taken from a part of the same recipe
whose shard is, byte for byte, the one its table was written for. Knows nothing of how parts are planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..cache.parts import PARTS_FOLDER, read_part_info, read_rows, shard_path, tensor_name
from ..cache.safetensors_io import map_safetensors
from ..errors import CacheError
from ..files import sha256_of_file
from ..loading.batches import Batch
from ..loading.rows import Known, Stored
from ..models.latent_encoder import EncodedBatch
from ..models.latent_pieces import Fault
from ..records import Bucket, Part, Row, StoredAt
from .run import Run

T = TypeVar("T")

MAX_MOVED_BYTES = 2**30  # of latents kept in memory in case their images come back; beyond it they are encoded anew
_FIELDS = tuple(item.name for item in fields(Row))


@dataclass(slots=True)
class ReusableLatents:
    """The stored latents of one cache. ``gone``: keys that are planned, but not in the source any more."""

    cache: Path
    fingerprint: str
    ratio: int  # pixels per latent cell
    gone: frozenset[str] = frozenset()
    _shards: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    _copies: dict[tuple[StoredAt, Bucket], dict[bool, Tensor]] = field(default_factory=dict)
    _moved: dict[str, list[Stored]] = field(default_factory=dict)

    def look_up(self, parts: Iterable[str]) -> None:
        """Note the latents of keys that are gone: an image may have come back under another name."""
        if not self.gone:
            return
        gone = pa.array(sorted(self.gone), pa.string())
        left = MAX_MOVED_BYTES
        for name in parts:
            for stored in self._images(name, gone).values():
                if stored[0][0].source_hash is not None and left > 0:
                    self._moved[stored[0][0].source_hash] = stored
                    left -= sum(self._copy(row, stored_at) for row, stored_at in stored)
            self.forget(name)

    def known(self, part: Part) -> Known:
        """What was stored for the part before, and what may have moved into it."""
        images = self._images(part.name, None)
        by_hash = {stored[0][0].source_hash: stored for stored in images.values()}
        return Known(
            self._moved | {hashed: stored for hashed, stored in by_hash.items() if hashed},
            {key: stored for key, stored in images.items() if key in self.gone},
        )

    def complete(self, batch: Batch, encode: Callable[[], EncodedBatch] | None) -> EncodedBatch:
        """The latents of a whole batch, stored ones among those that were just encoded."""
        fresh = encode() if encode else None
        if fresh is not None and not any(isinstance(image, StoredAt) for image in batch.images):
            return fresh
        plain: list[Tensor] = []
        mirrored: list[Tensor] = []
        faults: list[Fault | None] = []
        redone: list[int] = []
        magnitudes: list[float] = []  # of copies: 0, nobody asks
        used = 0
        for image in batch.images:
            if isinstance(image, StoredAt):
                plain.append(self._tensor(image, batch.bucket, False))
                if image.flip:
                    mirrored.append(self._tensor(image, batch.bucket, True))
                faults.append(None)
                magnitudes.append(0.0)
                continue
            assert fresh is not None, "an image was encoded"
            plain.append(fresh.latents[used])
            if fresh.mirrored is not None:
                mirrored.append(fresh.mirrored[used])
            if used in fresh.redone:
                redone.append(len(faults))
            faults.append(fresh.faults[used])
            magnitudes.extend(fresh.magnitudes[used : used + 1])
            used += 1
        flipped = torch.stack(mirrored) if mirrored else None
        return EncodedBatch(torch.stack(plain), flipped, faults, redone, magnitudes)

    def forget(self, part: str) -> None:
        """Let go of a part's files once it is written anew."""
        self._shards.pop(part, None)

    def _tensor(self, stored_at: StoredAt, bucket: Bucket, flip: bool) -> Tensor:
        if (stored_at, bucket) in self._copies:
            return self._copies[stored_at, bucket][flip]
        cells = bucket.height // self.ratio, bucket.width // self.ratio
        return self._shards[stored_at.part][tensor_name(*cells, flip=flip)][stored_at.row]

    def _copy(self, row: Row, stored_at: StoredAt) -> int:
        """Keep a copy of a latent; returns its bytes."""
        assert row.bucket is not None, "ok rows have a bucket"
        copies = {flip: self._tensor(stored_at, row.bucket, flip).clone() for flip in {False, stored_at.flip}}
        self._copies[stored_at, row.bucket] = copies
        return sum(copy.nbytes for copy in copies.values())

    def _images(self, name: str, wanted: pa.Array | None) -> dict[str, list[Stored]]:
        """The stored rows of a part by the key of their image."""
        images: dict[str, list[Stored]] = {}
        for row, stored_at in self._rows(name, wanted):
            images.setdefault(row.image_key, []).append((row, stored_at))
        return images

    def _rows(self, name: str, wanted: pa.Array | None) -> Iterable[Stored]:
        """The stored rows of a part, or those of images of the wanted keys. Its shard is mapped first: the map
        outlives the file, which may be replaced soon."""
        try:
            info = read_part_info(self.cache, name)
            if info is None or info.fingerprint != self.fingerprint:
                return
            table = read_rows(self.cache, name)
            table = table.filter(pc.equal(table["status"], "ok"))
            if wanted is not None:
                table = table.filter(pc.is_in(pc.coalesce(table["image"], table["key"]), value_set=wanted))
            rows: list[dict[str, Any]] = table.to_pylist()
            path = shard_path(self.cache, name)
            if not rows or not path.exists() or sha256_of_file(path) != info.shard_sha256:
                return
            self._shards[name] = map_safetensors(path)
        except CacheError:  # damaged: then it is made anew
            return
        flip = any(tensor.startswith("latents_flip.") for tensor in self._shards[name])
        for values in rows:
            row = Row(**{column: values[column] for column in _FIELDS})
            assert row.row is not None, "ok rows are numbered"
            yield row, StoredAt(name, row.row, flip)


_TAKEN = np.empty((0, 0, 3), dtype=np.uint8)


def prepare_fresh(batch: Batch, prepare: Callable[..., T]) -> T | None:
    """Those images of a batch that aren't stored, as the encoder wants them; None if all are. The batch lets go of
    their pixels."""
    images = [image for image in batch.images if not isinstance(image, StoredAt)]
    if not images:
        return None
    prepared = prepare(images)
    batch.images[:] = [image if isinstance(image, StoredAt) else _TAKEN for image in batch.images]
    return prepared


def encode_fresh(prepared: Any, launch: Callable[..., Any]) -> Callable[[], EncodedBatch] | None:
    """Start encoding what ``prepare_fresh`` gave; returns how to wait for it, None if there is nothing."""
    return None if prepared is None else partial(_result, launch(prepared))


def _result(pending: Any) -> EncodedBatch:
    result: EncodedBatch = pending.result()
    return result


def find_reusable(run: Run, gone: frozenset[str]) -> ReusableLatents:
    """What this run can copy instead of encoding it again. ``gone``: planned keys that the source has no more."""
    reusable = ReusableLatents(run.cache, run.fingerprint, run.recipe["spatial_compression_ratio"], gone)
    reusable.look_up(sorted(path.stem for path in (run.cache / PARTS_FOLDER).glob("part-*.parquet")))
    return reusable
