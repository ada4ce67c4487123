"""A DataLoader whose state counts the batches that were delivered, not those that worker processes took ahead.

Knows nothing of files or orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from ..errors import UsageError
from .batch import as_collated
from .sampler import BucketBatchSampler


class LatentLoader:
    """Batches of a dataset, in the sampler's order, as collated dictionaries.

    ``options`` are DataLoader's own: ``num_workers``, ``prefetch_factor``, ``pin_memory``, ``persistent_workers``.
    ``state_dict`` tells where the training loop is, right with any number of workers, also from inside the loop; it
    is the sampler's state, and goes on with any number of ranks and workers. ``accelerator.prepare`` leaves a
    LatentLoader as it is: the sampler shares batches out among the ranks already. Iterating again after a break goes
    on behind the last batch that was delivered.
    """

    def __init__(self, dataset: Any, sampler: BucketBatchSampler, **options: Any) -> None:
        for name in ("batch_size", "shuffle", "sampler", "drop_last"):
            if name in options:
                raise UsageError(f"`{name}` is BucketBatchSampler's; LatentLoader takes DataLoader's other options.")
        self.dataset, self.sampler = dataset, sampler
        collate = options.pop("collate_fn", as_collated)
        self.loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **options)
        self._state: dict[str, Any] | None = None  # while an epoch is under way

    def __len__(self) -> int:
        """Batches of a whole epoch for this rank."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        if self._state is not None:  # the last loop was left early: batches were taken ahead for it
            self.sampler.load_state_dict(self._state)
        start = self.sampler.state_dict()
        self._state = start
        for count, batch in enumerate(self._batches(), 1):
            self._state = {**start, "done": start["done"] + count * self.sampler.world_size}
            yield batch
        self._state = None

    def _batches(self) -> Iterator[Any]:
        loader = self.loader
        if loader.num_workers or loader.pin_memory or not hasattr(self.dataset, "__getitems__"):
            return iter(loader)
        # In this process torch's loader adds nothing but marks for its profiler, 0.1 ms a batch.
        return (loader.collate_fn(self.dataset.__getitems__(numbers)) for numbers in self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Start the given epoch from its first batch; where that epoch is under way already, it goes on."""
        if self._state is not None:
            self.sampler.load_state_dict(self._state)
            self._state = None
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Which batches of which epoch all ranks together have been given so far."""
        return self.sampler.state_dict() if self._state is None else dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batch at which ``state_dict`` was taken. UsageError for a state of other samples."""
        self._state = None
        self.sampler.load_state_dict(state)
