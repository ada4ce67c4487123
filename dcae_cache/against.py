"""A cache beside other autoencoders and other caches, on the same pixels: scores, sizes, time and memory.

The cache's own side decodes what it stores; the others encode and decode the same images anew, or decode what they
store of them. Knows nothing of reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from .autoencoders import Autoencoder, HubOptions, crop_alike
from .cache_model import CacheModel
from .errors import DCAECacheError, ModelError, TensorError, one_line
from .index import INDEX_NAME
from .opener import Opener
from .reader import LatentDataset
from .samples import COLUMNS, SampleBatch
from .set_metrics import SetMetric
from .shards import TORCH_DTYPES
from .standing import ImageBatch, Standing, compare_sides


@dataclass(frozen=True, slots=True)
class Contenders:
    """Who stands beside a cache: names of autoencoders, and folders that are caches. Errors of each are its own."""

    names: Sequence[str]
    device: torch.device
    hub: HubOptions
    set_metrics: Sequence[SetMetric] = ()


@dataclass(slots=True)
class SideBySide:
    """The standings, the cache's own first, over ``num_images``; ``notes`` says what was left out, and why."""

    standings: list[Standing]
    num_images: int
    notes: list[str] = field(default_factory=list)


class StoredLatents(Autoencoder):
    """A cache as an autoencoder: its model's, but what it decodes is what the cache stores."""

    def __init__(self, name: str, dataset: LatentDataset, model: CacheModel, numbers: Mapping[str, int]) -> None:
        super().__init__(model.codec, model.num_weight_bytes)
        self.name = name
        self.bytes_per_number = TORCH_DTYPES[model.recipe["dtype"]].itemsize
        self._dataset, self._scaling_factor, self._numbers = dataset, model.scaling_factor, numbers

    def stored(self, keys: Sequence[str]) -> Tensor | None:
        latents = torch.stack([self._dataset.latents(self._numbers[key]) for key in keys])
        return latents.to(torch.float32) / self._scaling_factor


def stand_side_by_side(
    dataset: LatentDataset,
    numbers: Sequence[int],
    read: Callable[[Sequence[int]], Iterable[SampleBatch]],
    open_model: Callable[[], CacheModel],
    others: Contenders,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> SideBySide:
    """Every side on the numbered samples. ``read`` gives their images, anew for each side; ``open_model`` the cache's
    own model, when it is its turn: no other is in memory then. ``report`` hears (images done by any side, of how
    many)."""
    own = f"{dataset.cache.name} (stored)"
    caches = _Caches(dataset, numbers, others)
    names = [own, *dict.fromkeys(others.names)]
    opener = Opener([name for name in names[1:] if name not in caches.names], others.device, torch.float32, others.hub)
    factors = [dataset.spatial_compression_ratio, *caches.factors, *opener.factors]
    result = SideBySide([], len(caches.common), caches.notes)
    done, small = 0, set[str]()

    def open_one(name: str) -> Autoencoder:
        if name == own:
            return StoredLatents(own, dataset, open_model(), caches.common)
        return caches.open(name) if name in caches.names else opener.open(name)

    def batches() -> Iterator[ImageBatch]:
        for batch in read(sorted(caches.common.values())):
            try:
                yield ImageBatch(crop_alike(batch.images, factors), batch.keys)
            except TensorError as error:
                small.add(one_line(error))

    def heard(side: int, batch: ImageBatch, *rest: object) -> None:
        nonlocal done
        done += len(batch.keys)
        report(done, len(caches.common) * (len(names) - len(opener.failed) - len(caches.failed)))

    standings = compare_sides(names, batches, open_one, set_metrics=others.set_metrics, heard=heard)
    result.standings = [
        replace(standing, failure="no image was left to compare")
        if not (standing.mean or standing.failure)
        else standing
        for standing in standings
    ]
    result.notes += [f"left out: {reason}" for reason in sorted(small)]
    return result


class _Caches:
    """The other caches among the names: opened, and asked which of the samples they hold in the same crop.

    ``common``: the samples that all of them hold, key -> number, of those asked for.
    """

    def __init__(self, dataset: LatentDataset, numbers: Sequence[int], others: Contenders) -> None:
        self._others = others
        self.names = [name for name in dict.fromkeys(others.names) if (Path(name) / INDEX_NAME).is_file()]
        self.notes: list[str] = []
        self.factors: list[int] = []
        self._opened: dict[str, tuple[LatentDataset, Mapping[str, int]] | DCAECacheError] = {}
        wanted = {}
        for number in numbers:
            recorded = dataset.describe(number)
            wanted[recorded["key"]] = (number, recorded)
        for name in self.names:
            try:
                other = LatentDataset(name, columns=COLUMNS)
                held = other.numbers_of(wanted)
            except DCAECacheError as error:
                self._opened[name] = error
                continue
            same = {key: number for key, number in held.items() if other.describe(number) == wanted[key][1]}
            if not same:
                self._opened[name] = ModelError(f"{name} holds none of these images in the same crop")
                continue
            if len(same) < len(wanted):
                self.notes.append(
                    f"{name} holds {len(same)} of {len(wanted)} samples in the same crop; the others are left out"
                )
            self._opened[name] = other, same
            self.factors.append(other.spatial_compression_ratio)
            wanted = {key: wanted[key] for key in same}
        self.common = {key: number for key, (number, _) in wanted.items()}

    @property
    def failed(self) -> list[str]:
        """The names that are no use as a side."""
        return [name for name, found in self._opened.items() if isinstance(found, DCAECacheError)]

    def open(self, name: str) -> Autoencoder:
        found = self._opened[name]
        if isinstance(found, DCAECacheError):
            raise found if isinstance(found, ModelError) else ModelError(one_line(found, 400))
        dataset, numbers = found
        try:
            model = CacheModel(dataset.index, self._others.device, None, self._others.hub)
        except DCAECacheError as error:
            raise ModelError(one_line(error, 400)) from error
        return StoredLatents(f"{dataset.cache.name} (stored)", dataset, model, numbers)
