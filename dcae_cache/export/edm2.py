"""A ZIP as EDM2's trainer reads it: raw mean and zero std of every sample, and dataset.json.

    latents.zip    00000/img-mean-std-00000000.npy ... float32 [2c, h, w];
                   dataset.json {"labels": [[name, class], ...]}, null where there are no labels
    statistics.json    raw_mean and raw_std, c numbers each, for the trainer's encoder
    classes.json       label -> class number, where there are labels

DC-AE has no posterior to draw from, so the std is 0. Members are stored, not compressed: the trainer reads them as
they are.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..cache.moments import ChannelMoments
from ..errors import UsageError
from ..files import replace_atomically
from .exporter import Exporter, write_json
from .labels import class_numbers
from .samples import ExportSample
from .statistics import moments_of, unbiased_std
from .tars import npy

ZIP_NAME, STATISTICS_NAME = "latents.zip", "statistics.json"
_PIECES = "pieces"
_MOMENTS_AT_ONCE = 64  # samples


class Edm2Exporter(Exporter):
    """See the module. A shard is a ZIP of its own until all are there; ``finish`` joins them."""

    name = "edm2"
    values = "raw"
    copies = 2  # mean and std
    needs = 2  # the pieces, and what they are joined to

    def check(self) -> None:
        self.only_square()
        if self.facts.unlabelled not in (0, self.facts.num_samples):
            raise UsageError(
                f"{self.name} wants labels for all samples or for none, and {self.facts.unlabelled:,} of "
                f"{self.facts.num_samples:,} have none. Leave them out: `where` 'label is not null'."
            )
        _ = self._classes

    def write(self, folder: Path, shard: int, samples: Iterable[ExportSample]) -> dict[str, Any]:
        (folder / _PIECES).mkdir()
        labels: list[tuple[str, int]] = []
        moments = _Moments(self.facts.channels)
        count = 0
        with zipfile.ZipFile(folder / _PIECES / f"{shard:05d}.zip", "w", zipfile.ZIP_STORED) as piece:
            for sample in samples:
                name = f"{sample.number // 1000:05d}/img-mean-std-{sample.number:08d}.npy"
                both = torch.cat([sample.latents, torch.zeros_like(sample.latents)])
                piece.writestr(zipfile.ZipInfo(name), npy(both))
                if sample.label is not None:
                    labels.append((name, self._classes[sample.label]))
                if self.facts.statistics is None:
                    moments.add(sample)
                count += 1
        return {"num_samples": count, "labels": labels, "moments": moments.total().to_json()}

    def finish(self, folder: Path, shards: Sequence[Mapping[str, Any]]) -> str:
        labels = [label for shard in shards for label in shard["labels"]]
        if not (folder / ZIP_NAME).exists():  # once it is there, it holds all pieces
            _join([folder / _PIECES / f"{shard:05d}.zip" for shard in range(len(shards))], folder / ZIP_NAME, labels)
        shutil.rmtree(folder / _PIECES, ignore_errors=True)
        moments = moments_of(self.facts, shards)
        write_json(folder / STATISTICS_NAME, {"raw_mean": moments.mean, "raw_std": unbiased_std(moments)})
        if self._classes:
            write_json(folder / "classes.json", self._classes)
        return (
            f"EDM2: data {(folder / ZIP_NAME).resolve()}, an encoder like StabilityVAEEncoder with raw_mean and "
            f"raw_std from {STATISTICS_NAME} and DC-AE's decoder. Leave xflip off: a mirrored latent isn't that of "
            "the mirrored image. Values are raw."
        )

    @cached_property
    def _classes(self) -> dict[str, int]:
        if self.facts.unlabelled:
            return {}
        return dict(sorted(class_numbers(self.facts, self.name).items(), key=lambda item: item[1]))


class _Moments:
    """Moments of samples as they come, some at a time."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._waiting: list[torch.Tensor] = []
        self._done: list[ChannelMoments] = []

    def add(self, sample: ExportSample) -> None:
        self._waiting.append(sample.latents)
        if len(self._waiting) == _MOMENTS_AT_ONCE:
            self._done, self._waiting = [self.total()], []

    def total(self) -> ChannelMoments:
        """Of all so far."""
        stacked = [torch.stack(self._waiting)] if self._waiting else []
        return ChannelMoments.merge([*self._done, ChannelMoments.of(stacked, self._channels)], self._channels)


def _join(pieces: Sequence[Path], target: Path, labels: Sequence[Sequence[Any]]) -> None:
    with replace_atomically(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as whole:
        for path in pieces:
            with zipfile.ZipFile(path) as piece:
                for info in piece.infolist():
                    whole.writestr(zipfile.ZipInfo(info.filename), piece.read(info))
        whole.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": labels or None}))
