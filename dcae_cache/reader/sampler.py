"""Batches of one bucket each, in an order that follows from seed and epoch. Knows nothing of tables or tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from ..errors import UsageError
from .dataset import LatentDataset


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of sample numbers, each of one bucket, for ``DataLoader(dataset, batch_sampler=...)``.

    The batches of an epoch follow from ``seed`` and the epoch alone, whatever the number of ranks; rank r of n takes
    every n-th. The last, smaller batch of each bucket is kept unless ``drop_last``; up to n - 1 batches at the end of
    an epoch are dropped so that all ranks take equally many steps. ``state_dict`` after any batch resumes behind it.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank_and_world_size: tuple[int, int] = (0, 1),
    ) -> None:
        self.rank, self.world_size = rank_and_world_size
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}.")
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank {self.rank} is not among {self.world_size} ranks (0 to {self.world_size - 1}).")
        self._buckets = [(bucket, runs) for bucket, runs in sorted(dataset.buckets().items())]
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.epoch = 0
        self._done = 0  # batches of this epoch that this rank has taken

    def __len__(self) -> int:
        """Batches of a whole epoch for this rank."""
        sizes = (sum(len(run) for run in runs) for _, runs in self._buckets)
        batches = sum(size // self.batch_size if self.drop_last else -(-size // self.batch_size) for size in sizes)
        return batches // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._epoch_batches()
        mine = batches[self.rank :: self.world_size][: len(self)]
        for batch in mine[self._done :]:
            self._done += 1
            yield batch.tolist()
        self.epoch += 1
        self._done = 0

    def set_epoch(self, epoch: int) -> None:
        """Start the given epoch from its first batch."""
        self.epoch, self._done = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where this rank is: the epoch, and the batches of it already taken."""
        return {"epoch": self.epoch, "done": self._done, "seed": self.seed, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the batch at which ``state_dict`` was taken. UsageError if seed or batch size differ."""
        for name in ("seed", "batch_size"):
            if state[name] != getattr(self, name):
                raise UsageError(
                    f"The state was saved with {name} {state[name]}; this sampler has {getattr(self, name)}."
                )
        self.epoch, self._done = state["epoch"], state["done"]

    def _epoch_batches(self) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        random = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for _, runs in self._buckets:
            numbers = np.concatenate([np.arange(run.start, run.stop) for run in runs])
            if self.shuffle:
                random.shuffle(numbers)
            stop = len(numbers) - len(numbers) % self.batch_size if self.drop_last else len(numbers)
            batches += [numbers[start : start + self.batch_size] for start in range(0, stop, self.batch_size)]
        if self.shuffle:
            order = random.permutation(len(batches))
            batches = [batches[i] for i in order]
        return batches
