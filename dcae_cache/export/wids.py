"""Tars with an index for wids, as Sana's and DC-Gen's text-to-image trainers read them.

    00000.tar ...       000000000.npy (float32 [c, h, w], scaled), 000000000.json (prompt, captions, clip_scores,
                        height, width, key, label and what else the row says)
    wids-meta.json

Both trainers read names of at most 100 bytes from plain USTAR headers and split them at a dot, so members are numbered
and the key stands in the JSON. Both choose a sample's bucket anew, as the entry of their table whose aspect ratio is
nearest to height / width, and want the latent to be of that size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..images.bucket_tables import TABLES, nearest_in_table, sana_keys
from ..records import Bucket
from .exporter import Exporter, write_json
from .samples import ExportSample
from .tars import add_member, new_tar, npy

INDEX_NAME = "wids-meta.json"
_SANA = [name for name in TABLES if name.startswith("sana-")]


class WidsExporter(Exporter):
    """See the module."""

    name = "wids"
    values = "scaled"

    def check(self) -> None:
        _ = self._table

    def cautions(self) -> list[str]:
        found = self.missing_captions()
        if self.options.shuffle is None:
            found.append("Sana's sampler doesn't shuffle, and these are in the cache's order: export with `shuffle`.")
        return found

    def write(self, folder: Path, shard: int, samples: Iterable[ExportSample]) -> dict[str, Any]:
        name, count = f"{shard:05d}.tar", 0
        with new_tar(folder / name) as tar:
            for sample in samples:
                add_member(tar, f"{sample.number:09d}.npy", npy(sample.latents))
                add_member(tar, f"{sample.number:09d}.json", json.dumps(self._notes(sample)).encode())
                count += 1
        return {"url": name, "nsamples": count, "filesize": (folder / name).stat().st_size}

    def finish(self, folder: Path, shards: Sequence[Mapping[str, Any]]) -> str:
        index = {"wids_version": 1, "name": folder.resolve().name, "shardlist": [dict(shard) for shard in shards]}
        write_json(folder / INDEX_NAME, index)
        return (
            f"Sana: type SanaWebDatasetMS, data_dir [{folder.resolve()}], load_vae_feat true, load_text_feat false, "
            f"multi_scale true, aspect_ratio_type ASPECT_RATIO_{self._table.removeprefix('sana-')}, "
            f"vae_downsample_rate {self.facts.ratio}. DC-Gen: the same folder, train_data_scaling_factor unset. "
            f"Values are scaled by {self.facts.scaling_factor:g}."
        )

    @cached_property
    def _table(self) -> str:
        """The table that holds every bucket, of several that of the smallest sizes. Raises UsageError where none
        does."""
        buckets = set(self.facts.buckets)
        for name in _SANA:
            if buckets <= set(TABLES[name]):
                return name
        fitting = [name for name in _SANA if all(_divides(self.facts.ratio, each) for each in TABLES[name])]
        known = {bucket for name in _SANA for bucket in TABLES[name]}
        outside = sorted(buckets - known) or sorted(buckets)
        encode = f"`bucket` {', '.join(fitting)}" if fitting else "an autoencoder whose factor divides their sizes"
        raise UsageError(
            f"Sana and DC-Gen know fixed tables of sizes, and no table holds all buckets of {self.facts.cache}: "
            f"{outside[0]} is outside. {self._one_resolution()}Encode with {encode}."
        )

    def _notes(self, sample: ExportSample) -> dict[str, Any]:
        """The JSON beside a latent. Where the trainers' rule would take the original's size into another bucket than
        the latent's, the bucket's own size stands in its place: each maps to itself."""
        size = Bucket(sample.height, sample.width)
        shown = size if _agreed(self._table, size) == sample.bucket else sample.bucket
        attributes = sample.attributes
        captions = sample.captions(attributes) or [""]
        return attributes | {
            "key": sample.key,
            **sample.view,
            "prompt": captions[0],
            "captions": captions,
            "clip_scores": _scores(attributes.get("clip_scores"), len(captions)),
            "height": shown.height,
            "width": shown.width,
            "original_height": sample.height,
            "original_width": sample.width,
            "label": sample.label,
        }


def _agreed(table: str, size: Bucket) -> Bucket | None:
    """The bucket that the trainers choose for an image of that size; None where their floats and exact numbers differ
    on it: half-way between two entries."""
    ratio = size.height / size.width
    nearest = min(sana_keys(table), key=lambda item: abs(item[0] / 100 - ratio))[1]
    return nearest if nearest == nearest_in_table(size.height, size.width, table) else None


def _scores(found: Any, count: int) -> list[float]:
    """The captions' own scores where they came with one each that DC-Gen can weigh by, else the same for all."""
    if isinstance(found, list) and len(found) == count and all(isinstance(each, int | float) for each in found):
        scores = [float(each) for each in found]
        if min(scores) >= 0 and sum(scores) > 0:
            return scores
    return [1.0] * count


def _divides(ratio: int, bucket: Bucket) -> bool:
    return bucket.height % ratio == bucket.width % ratio == 0
