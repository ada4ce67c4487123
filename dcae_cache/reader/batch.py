"""What goes into a loader and comes out: numbers of one batch, draws that follow from them, and a collated batch.

Knows nothing of files, caches or orders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # Steele et al., "Fast splittable pseudorandom number generators"
_STEP = 0x9E3779B97F4A7C15


class BatchNumbers(list[int]):
    """The sample numbers of a batch, with the seed and epoch they are drawn for: random choices follow from these.

    ``turns``: for each, how often the same sample came before in this epoch, where samples are repeated. Not to be
    changed: ``array`` holds the same numbers (int64).
    """

    def __init__(
        self,
        numbers: Iterable[int] | NDArray[np.int64],
        *,
        seed: int = 0,
        epoch: int = 0,
        turns: Sequence[int] | None = None,
    ) -> None:
        super().__init__(numbers.tolist() if isinstance(numbers, np.ndarray) else numbers)
        self.array = numbers if isinstance(numbers, np.ndarray) else np.array(self, np.int64)
        self.seed, self.epoch, self.turns = seed, epoch, turns


def as_array(numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Sample numbers as an array [N]."""
    return numbers.array if isinstance(numbers, BatchNumbers) else np.asarray(numbers, np.int64)


class Draws:
    """Random numbers for the samples of a batch. They follow from seed, epoch, sample and turn alone, and so are the
    same for any number of ranks and workers, and after a resume. ``asked``: what was asked for, with the rest of it
    where it is BatchNumbers."""

    def __init__(self, numbers: NDArray[np.int64], *, asked: Sequence[int] = ()) -> None:
        self.numbers = numbers
        self._turns: Sequence[int] | None = getattr(asked, "turns", None)
        self._seed, self._epoch = getattr(asked, "seed", 0), getattr(asked, "epoch", 0)

    def __len__(self) -> int:
        return len(self.numbers)

    def uniform(self, purpose: str) -> NDArray[np.float64]:
        """One number in [0, 1) a sample; another purpose gives other numbers."""
        key = hashlib.sha256(f"{self._seed} {self._epoch} {purpose}".encode()).digest()
        turns = np.asarray(0 if self._turns is None else self._turns, np.uint64)
        bits = mixed(mixed(self.numbers.astype(np.uint64) + np.uint64(int.from_bytes(key[:8]))) + turns)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer: every bit of the result depends on every bit of the value."""
    values = values + np.uint64(_STEP)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX[1])
    return values ^ (values >> np.uint64(31))


class Sample(dict[str, Any]):
    """One sample, as a dictionary."""


class LatentBatch(Sequence[Sample]):
    """A batch that is collated already, and can still be taken apart: ``batch.collated`` is what a training step gets,
    ``batch[i]`` the sample. torch's ``default_collate`` takes the former as it is."""

    def __init__(self, collated: dict[str, Any], size: int) -> None:
        self.collated = collated
        self._size = size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(f"sample {index} of a batch of {self._size}")
        return Sample({name: _one(values, index) for name, values in self.collated.items()})

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(self._size))


def _one(values: Any, index: int) -> Any:
    if isinstance(values, Tensor) and values.ndim == 1:
        return values[index].item()
    return values[index]


def as_collated(batch: Any) -> dict[str, Any]:
    """A loader's collate function that copies nothing."""
    collated: dict[str, Any] = batch.collated
    return collated


def _collate_samples(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """What ``default_collate`` calls for samples; those that weren't read together are put together one by one."""
    if isinstance(batch, LatentBatch):
        return batch.collated
    return torch.utils.data.default_collate([dict(sample) for sample in batch])


default_collate_fn_map[Sample] = _collate_samples  # torch's own way to teach it a type


def merged(batches: Sequence[Mapping[str, Any]], order: NDArray[np.int64]) -> dict[str, Any]:
    """Several collated batches of the same names as one: one after another, then taken in this order."""
    return {name: _joined([batch[name] for batch in batches], order) for name in batches[0]}


def _joined(parts: list[Any], order: NDArray[np.int64]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)[torch.from_numpy(order)]
    values = [value for part in parts for value in part]
    return [values[i] for i in order.tolist()]
