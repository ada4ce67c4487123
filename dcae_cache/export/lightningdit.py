"""safetensors as LightningDiT and its successors read them.

    latents_rank00_shard00000.safetensors ...    latents, latents_flip float32 [N, c, h, w], raw; labels int64 [N]
    latents_stats.pt                             mean, std float32 [1, c, 1, 1] of all latents
    classes.json                                 label -> class number

The loader takes the mirrored latent of a sample half of the time, and normalises by the statistics: they come exactly
from the cache's own sums, where the loader would guess them from 10,000 samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..cache.moments import ChannelMoments
from ..errors import UsageError
from ..files import replace_atomically
from .exporter import Exporter, write_json
from .labels import class_numbers
from .samples import ExportSample
from .statistics import moments_of, unbiased_std

STATISTICS_NAME = "latents_stats.pt"


class LightningDiTExporter(Exporter):
    """See the module. A shard is in memory as a whole."""

    name = "lightningdit"
    values = "raw"
    copies = 2  # the mirrored ones

    @property
    def with_mirrored(self) -> bool:
        return True

    def check(self) -> None:
        self.only_bucket()
        _ = self._classes
        if not self.facts.has_flips:
            raise UsageError(
                f"{self.name} wants the latents of the mirrored images, too, and {self.facts.cache} has none. Encode "
                "with `flip`."
            )

    def write(self, folder: Path, shard: int, samples: Iterable[ExportSample]) -> dict[str, Any]:
        bucket, ratio = self.only_bucket(), self.facts.ratio
        shape = (self.shard_size, self.facts.channels, bucket.height // ratio, bucket.width // ratio)
        latents, mirrored = torch.empty(shape), torch.empty(shape)
        labels: list[int] = []
        for row, sample in enumerate(samples):
            assert sample.mirrored is not None, "asked for"
            assert sample.label is not None, "checked before"
            latents[row], mirrored[row] = sample.latents, sample.mirrored
            labels.append(self._classes[sample.label])
        count = len(labels)
        tensors = {"latents": latents[:count], "latents_flip": mirrored[:count], "labels": torch.tensor(labels)}
        # One line of metadata: the library writes several in another order each time.
        path = folder / f"latents_rank00_shard{shard:05d}.safetensors"
        save_file(tensors, path, metadata={"total_size": str(count)})
        noted: dict[str, Any] = {"num_samples": count}
        if self.facts.statistics is None:
            noted["moments"] = ChannelMoments.of([latents[:count]], self.facts.channels).to_json()
        return noted

    def finish(self, folder: Path, shards: Sequence[Mapping[str, Any]]) -> str:
        moments = moments_of(self.facts, shards)
        with replace_atomically(folder / STATISTICS_NAME) as file:
            torch.save({"mean": _column(moments.mean), "std": _column(unbiased_std(moments))}, file)
        write_json(folder / "classes.json", self._classes)
        return (
            f"LightningDiT: data_path {folder.resolve()}, latent_norm true, latent_multiplier 1.0, num_classes "
            f"{max(self._classes.values()) + 1}. Values are raw; classes are numbered as in classes.json."
        )

    @cached_property
    def _classes(self) -> dict[str, int]:
        return dict(sorted(class_numbers(self.facts, self.name).items(), key=lambda item: item[1]))


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1).float()
