"""A cache beside other autoencoders and other caches, on the same pixels: scores, sizes, time and memory.

The cache decodes what it stores; the others encode and decode the same images anew, or decode what they
store of them. Knows nothing of reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..cache.index import INDEX_NAME
from ..compare.measure import crop_alike
from ..compare.side_by_side import (
    AutoencoderResult,
    Candidate,
    Candidates,
    ImageBatch,
    compare_autoencoders,
    find_autoencoder,
)
from ..compute.devices import TORCH_DTYPES
from ..decode.cache_model import CacheModel
from ..errors import DCAECacheError, ModelError, TensorError, one_line
from ..metrics.set_scores import SetMetric
from ..models.autoencoder import Autoencoder
from ..models.options import HubOptions
from ..reader.dataset import LatentDataset
from .source_images import COLUMNS, SampleBatch


@dataclass(frozen=True, slots=True)
class ComparedWith:
    """Who stands beside a cache: names of autoencoders, and folders that are caches. Errors of each are its own."""

    names: Sequence[str]
    device: torch.device
    hub: HubOptions
    set_metrics: Sequence[SetMetric] = ()


@dataclass(slots=True)
class SideBySide:
    """The standings, the cache's own first, over ``num_images``; ``notes`` says what was left out, and why."""

    standings: list[AutoencoderResult]
    num_images: int
    notes: list[str]


class CacheAutoencoder(Autoencoder):
    """A cache as an autoencoder: its model's, but what it decodes is what the cache stores."""

    def __init__(self, name: str, dataset: LatentDataset, model: CacheModel, numbers: Mapping[str, int]) -> None:
        super().__init__(model.codec, model.num_weight_bytes)
        self.name = name
        self.bytes_per_number = TORCH_DTYPES[model.recipe["dtype"]].itemsize
        self._dataset, self._model, self._numbers = dataset, model, numbers

    def stored(self, keys: Sequence[str]) -> Tensor | None:
        return self._model.raw(self._dataset.stack([self._numbers[key] for key in keys]))


def compare_cache(
    dataset: LatentDataset,
    numbers: Sequence[int],
    read: Callable[[Sequence[int]], Iterable[SampleBatch]],
    open_model: Callable[[], CacheModel],
    others: ComparedWith,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SideBySide:
    """All of them on the numbered samples. ``read`` gives their images, anew for each; ``open_model`` the cache's
    own model, when it is its turn: no other is in memory then. ``progress`` hears (images done by any of them, of how
    many)."""
    common = _Common(dataset, numbers)
    own = title_of(dataset)

    def find(name: str) -> Candidate:
        if name == own:
            return Candidate(
                dataset.spatial_compression_ratio,
                lambda: CacheAutoencoder(own, dataset, open_model(), common.numbers),
            )
        if (Path(name) / INDEX_NAME).is_file():
            return _find_cache(name, common, others)
        return find_autoencoder(name, others.device, torch.float32, others.hub)

    names = [own, *dict.fromkeys(others.names)]
    candidates = Candidates(names, find)
    done, too_small = 0, set[str]()

    def batches() -> Iterator[ImageBatch]:
        for batch in read(sorted(common.numbers.values())):
            try:
                yield ImageBatch(crop_alike(batch.images, candidates.factors), batch.keys)
            except TensorError as error:
                too_small.add(one_line(error))

    def on_batch(number: int, batch: ImageBatch, *rest: object) -> None:
        nonlocal done
        done += len(batch.keys)
        progress(done, len(common.numbers) * len(candidates.factors))

    results = compare_autoencoders(names, batches, candidates.open, set_metrics=others.set_metrics, on_batch=on_batch)
    notes = [*common.notes, *(f"left out: {reason}" for reason in sorted(too_small))]
    return SideBySide([_or_failed(result) for result in results], len(common.numbers), notes)


def title_of(dataset: LatentDataset) -> str:
    """What a cache is called among autoencoders."""
    return f"{dataset.cache.name} (stored)"


class _Common:
    """The samples that all caches of a comparison hold in the same crop, so far: each cache found leaves fewer."""

    def __init__(self, dataset: LatentDataset, numbers: Sequence[int]) -> None:
        described = {number: dataset.describe(number) for number in numbers}
        self._recorded = {recorded["key"]: recorded for recorded in described.values()}
        self.numbers = {recorded["key"]: number for number, recorded in described.items()}
        self.notes: list[str] = []

    def narrow(self, name: str, other: LatentDataset) -> dict[str, int]:
        """Key -> number in ``other`` of those it holds too. Raises ModelError where there are none."""
        held = other.numbers_of(self.numbers)
        same = {key: number for key, number in held.items() if other.describe(number) == self._recorded[key]}
        if not same:
            raise ModelError(f"{name} holds none of these images in the same crop")
        if len(same) < len(self.numbers):
            count = f"{len(same)} of {len(self.numbers)} samples"
            self.notes.append(f"{name} holds {count} in the same crop; the others are left out")
            self.numbers = {key: number for key, number in self.numbers.items() if key in same}
        return same


def _find_cache(name: str, common: _Common, others: ComparedWith) -> Candidate:
    """Another cache. Whatever is wrong with it is a ModelError: its own failure, not the comparison's."""

    def open_it() -> Autoencoder:
        with _as_failure():
            model = CacheModel(other.index, others.device, None, others.hub)
        return CacheAutoencoder(title_of(other), other, model, numbers)

    with _as_failure():
        other = LatentDataset(name, columns=COLUMNS, allow_incomplete=True)
        numbers = common.narrow(name, other)
    return Candidate(other.spatial_compression_ratio, open_it)


@contextmanager
def _as_failure() -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except DCAECacheError as error:
        raise ModelError(str(error)) from error


def _or_failed(result: AutoencoderResult) -> AutoencoderResult:
    """One that got no image has no scores to show."""
    if result.mean is not None or result.failure is not None:
        return result
    return replace(result, failure="no image was left to compare")
