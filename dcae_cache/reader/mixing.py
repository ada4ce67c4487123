"""Several caches read as one: other sources, other resolutions. Knows nothing of files or orders."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from ..errors import UsageError
from .batch import BatchNumbers, LatentBatch, Sample, merged
from .dataset import LatentDataset
from .pool import Bucket
from .ranges import Ranges
from .selection import Selection


class MixedDataset(Dataset[Sample]):
    """The samples of several datasets, numbered one dataset after another. Samples of the same bucket come in the same
    batches, whichever dataset they are from; "dataset" in a batch is an int64 tensor [N] of its place in ``datasets``.

    All must give latents of the same autoencoder and scale, and should have the same columns and transforms: a batch
    has what all give. Raises UsageError where latents don't fit together.
    """

    def __init__(self, datasets: Sequence[LatentDataset]) -> None:
        if not datasets:
            raise UsageError("a mix needs at least one dataset.")
        self.datasets = tuple(datasets)
        for dataset in self.datasets[1:]:
            _refuse_other_latents(self.datasets[0], dataset)
        self._ends = list(accumulate(len(dataset) for dataset in self.datasets))
        self._starts = [0, *self._ends[:-1]]
        self._names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Sample:
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        return self.__getitems__([number % len(self)])[0]

    def __getitems__(self, numbers: Sequence[int]) -> LatentBatch:
        """The samples of one bucket as one batch; what loaders call."""
        homes = np.array([bisect_right(self._ends, number) for number in numbers], np.int64)
        turns = getattr(numbers, "turns", None)
        batches, places = [], []
        for home in np.unique(homes).tolist():
            here = np.flatnonzero(homes == home)
            asked = BatchNumbers(
                [numbers[i] - self._starts[home] for i in here.tolist()],
                seed=getattr(numbers, "seed", 0) + home,  # equal numbers of two datasets are drawn for apart
                epoch=getattr(numbers, "epoch", 0),
                turns=None if turns is None else [turns[i] for i in here.tolist()],
            )
            batches.append(self.datasets[home].__getitems__(asked).collated)
            places.append(here)
        batches = [{name: batch[name] for name in self._common_names()} for batch in batches]
        batch = merged(batches, np.argsort(np.concatenate(places)))
        return LatentBatch({**batch, "dataset": torch.from_numpy(homes)}, len(numbers))

    def _common_names(self) -> tuple[str, ...]:
        """What all datasets give: every batch has the same, whichever datasets it is from."""
        if self._names is None:
            given = [dataset[0] for dataset in self.datasets if len(dataset)]
            self._names = tuple(name for name in given[0] if all(name in sample for sample in given))
        return self._names

    @property
    def far_away(self) -> bool:
        """Whether any of them is."""
        return any(dataset.far_away for dataset in self.datasets)

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Tell each dataset which of its samples come next."""
        homes = np.searchsorted(self._ends, np.asarray(numbers, np.int64), side="right")
        for home, dataset in enumerate(self.datasets):
            dataset.prefetch((np.asarray(numbers, np.int64)[homes == home] - self._starts[home]).tolist())

    def buckets(self) -> dict[Bucket, Ranges]:
        """(height, width) in pixels -> the sample numbers in that bucket, of all datasets."""
        found: dict[Bucket, list[Ranges]] = {}
        parts = 0
        for start, dataset in zip(self._starts, self.datasets, strict=True):
            for bucket, ranges in dataset.buckets().items():
                found.setdefault(bucket, []).append(ranges.shifted(start, parts))
            parts += len(dataset.index["parts"])
        return {bucket: Ranges.joined(each) for bucket, each in sorted(found.items())}

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns of all samples, in the order of their numbers."""
        return pa.concat_tables([dataset.table(columns) for dataset in self.datasets], promote_options="permissive")

    def identity(self) -> dict[str, Any]:
        """What tells this mix from others, for states."""
        each = [dataset.identity() for dataset in self.datasets]
        return {f"{name} in dataset {place}": value for place, one in enumerate(each) for name, value in one.items()}

    def in_proportions(self, *proportions: float) -> Selection:
        """The mix with so much of each dataset in an epoch. The dataset that is largest for its proportion comes once;
        the others come several times, with other samples over from epoch to epoch."""
        if len(proportions) != len(self.datasets) or not all(share > 0 for share in proportions):
            raise UsageError(f"`proportions` must be {len(self.datasets)} numbers above 0, one a dataset.")
        if not all(map(len, self.datasets)):
            raise UsageError("a dataset without samples has no proportion of an epoch.")
        rates = [share / len(dataset) for share, dataset in zip(proportions, self.datasets, strict=True)]
        times = [np.full(len(dataset), rate / min(rates)) for rate, dataset in zip(rates, self.datasets, strict=True)]
        return Selection(self).repeated(np.concatenate(times))


def _refuse_other_latents(one: LatentDataset, other: LatentDataset) -> None:
    """Latents of different models have nothing in common, though their shapes may agree."""
    for name, of in (
        ("channels", lambda dataset: dataset.latent_channels),
        ("spatial compression ratio", lambda dataset: dataset.spatial_compression_ratio),
        ("model weights", lambda dataset: dataset.index.get("model", {}).get("weights_sha256")),
        ("scaling factor", lambda dataset: dataset.scaling_factor),
        ("raw or scaled latents", lambda dataset: "raw" if dataset.raw else "scaled"),
    ):
        if of(one) != of(other):
            raise UsageError(
                f"{one.store.root} and {other.store.root} can't be mixed: {name} {of(one)} and {of(other)}."
            )
