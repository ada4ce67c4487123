"""What all formats have in common: what is known before an export begins, and what a format must be able to do.

Knows nothing of any one format.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..cache.moments import ChannelMoments
from ..errors import UsageError
from ..files import replace_atomically
from ..records import Bucket
from .samples import ExportSample, Values

_SHARD_BYTES = 2**28  # of latents: what a shard takes by itself, and so the memory of formats that keep one


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of the chosen samples before the first latent is read.

    ``labels``: of each label, how many samples; ``unlabelled`` and ``uncaptioned`` count those without one.
    ``all_labels``: every label of the cache, sorted. ``keys_are_paths``: every key is its label, "/" and a name that
    a file can have. ``statistics``: exact moments of the raw latents where the whole cache is exported, else None.
    ``resolutions``: of the chosen samples, where there are several.
    """

    cache: str
    model: str
    scaling_factor: float
    channels: int
    ratio: int
    num_samples: int
    buckets: Mapping[Bucket, int]
    has_flips: bool
    labels: Mapping[str, int]
    all_labels: Sequence[str]
    unlabelled: int
    uncaptioned: int
    keys_are_paths: bool
    statistics: ChannelMoments | None
    resolutions: Sequence[int] = ()

    @property
    def num_values(self) -> int:
        """Numbers in all chosen latents together, mirrored ones not counted."""
        cells = sum(count * bucket.height * bucket.width for bucket, count in self.buckets.items())
        return cells // self.ratio**2 * self.channels


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to export and how.

    ``where``: only samples for which it holds, such as ``label == '3'``; ``limit``: at most so many; ``shuffle``: in
    an order that follows from this seed; ``shard_size``: samples a file. ``dtype``: fp32, or what else the format
    takes; ``tensor``: npy or safetensors (webdataset).
    """

    where: str | None = None
    limit: int | None = None
    shuffle: int | None = None
    shard_size: int | None = None
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    tensor: Literal["npy", "safetensors"] = "npy"

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("shard_size", 1), ("shuffle", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"`{name}` must be at least {least}, not {value}.")
        for name, known in (("dtype", ("fp32", "fp16", "bf16")), ("tensor", ("npy", "safetensors"))):
            if getattr(self, name) not in known:
                raise UsageError(f"`{name}` is one of {', '.join(known)}, not {getattr(self, name)!r}.")


class Exporter(ABC):
    """One format. ``write`` makes the files of one shard in a folder of their own, whose content is then moved into
    the export; ``finish`` writes what covers all shards. Both give the same bytes for the same samples, always.

    ``values``: what the format's trainers want, the encoder's own latents (raw) or those times the scaling factor.
    ``copies``: how many numbers a file holds for each number of a latent. ``needs``: times that space, while it is
    being written.
    """

    name: ClassVar[str]
    values: ClassVar[Values]
    dtypes: ClassVar[tuple[str, ...]] = ("fp32",)
    tensors: ClassVar[tuple[str, ...]] = ("npy",)
    copies: ClassVar[int] = 1
    needs: ClassVar[int] = 1
    largest_shard: ClassVar[int] = 10_000

    def __init__(self, facts: Facts, options: ExportOptions) -> None:
        self.facts, self.options = facts, options
        for name, known in (("dtype", self.dtypes), ("tensor", self.tensors)):
            if getattr(options, name) not in known:
                raise UsageError(
                    f"{self.name} takes `{name}` {' or '.join(known)}, not {getattr(options, name)}: its trainers "
                    "read nothing else."
                )

    @property
    def with_mirrored(self) -> bool:
        """Whether the format holds the latents of mirrored images, too."""
        return False

    @abstractmethod
    def check(self) -> None:
        """Raise UsageError for samples that the format can't hold."""

    @abstractmethod
    def write(self, folder: Path, shard: int, samples: Iterable[ExportSample]) -> dict[str, Any]:
        """Write the files of a shard; what is returned (JSON values) comes back to ``finish``."""

    @abstractmethod
    def finish(self, folder: Path, shards: Sequence[Mapping[str, Any]]) -> str:
        """Write what covers all shards, each file whole or not at all; returns how to point the trainer at it."""

    def cautions(self) -> list[str]:
        """What the format can hold, but a user may not have meant."""
        return []

    @property
    def num_bytes(self) -> int:
        """About how large the export will be."""
        return self.facts.num_values * self.copies * (4 if self.options.dtype == "fp32" else 2)

    @property
    def shard_size(self) -> int:
        """Samples of a shard."""
        average = max(1, self.num_bytes // self.facts.num_samples)
        return self.options.shard_size or max(1, min(self.largest_shard, _SHARD_BYTES // average))

    def only_bucket(self) -> Bucket:
        """The one bucket there is. Raises UsageError where there are several."""
        buckets = sorted(self.facts.buckets, key=lambda bucket: (-self.facts.buckets[bucket], bucket))
        if len(buckets) != 1:
            raise UsageError(
                f"{self.name} holds latents of one size, and {self.facts.cache} has {len(buckets)} buckets, such as "
                f"{buckets[0]} and {buckets[1]}. {self._one_resolution()}"
                f"Choose one: `where` 'bucket_height == {buckets[0].height} and "
                f"bucket_width == {buckets[0].width}'. Or encode with `bucket` square."
            )
        return buckets[0]

    def _one_resolution(self) -> str:
        """How to choose one of several resolutions, where there are several."""
        several = self.facts.resolutions
        return f"Choose one of its resolutions: `where` 'resolution == {several[-1]}'. " if several else ""

    def only_square(self) -> Bucket:
        """The one bucket there is, a square. Raises UsageError otherwise."""
        bucket = self.only_bucket()
        if bucket.height != bucket.width:
            raise UsageError(f"{self.name} holds square latents, and those are {bucket}. Encode with `bucket` square.")
        return bucket

    def missing_captions(self) -> list[str]:
        """The caution of formats that are of little use without captions."""
        facts = self.facts
        if not facts.uncaptioned:
            return []
        return [
            f"{facts.uncaptioned:,} of {facts.num_samples:,} samples have no caption, so theirs is empty. Captions "
            "come from encode's source, or leave such samples out with `where` 'caption is not null'."
        ]


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with replace_atomically(path) as file:
        file.write(json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n")
