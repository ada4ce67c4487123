"""Batches of one bucket each, in an order that follows from seed and epoch, shared out among ranks, resumable.

Knows nothing of tables or tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ..errors import UsageError
from .epoch import Epoch, EpochSettings, Way
from .pool import Bucket, Bucketed, pools_of
from .ranks import Uneven, num_steps, rank_and_world_size_here, refuse_second_sharding

_STATE_VERSION = 2
_BATCHES_AHEAD = 64  # that a cache far away is told of; told anew after half of them


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """A batch size for each bucket: as many samples as have ``tokens`` tokens together, at least one and at most
    ``largest``. A token is ``pixels`` x ``pixels`` pixels: the autoencoder's factor times the model's patch size."""

    tokens: int
    pixels: int
    largest: int | None = None

    def batch_size(self, bucket: Bucket) -> int:
        height, width = bucket
        fitting = self.tokens // max((height // self.pixels) * (width // self.pixels), 1)
        return max(min(fitting, self.largest or fitting), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerOptions:
    """How ranks share an epoch, and how far shuffling reaches.

    ``uneven``: the batches left over when the ranks have taken equally many: "repeat" the first ones until every rank
    has one, "drop" them, or "ragged": some ranks take a step more. ``same_bucket``: in each step all ranks have
    batches of one bucket; what is left over counts bucket by bucket. ``window``: shuffle within so many parts at a
    time, for disks that are slow at random access; None: over the whole cache.
    """

    uneven: Uneven = "repeat"
    same_bucket: bool = False
    window: int | None = None

    def __post_init__(self) -> None:
        if self.uneven not in ("repeat", "drop", "ragged"):
            raise UsageError(f"`uneven` must be repeat, drop or ragged, not {self.uneven!r}.")
        if self.same_bucket and self.uneven == "ragged":
            raise UsageError("with `same_bucket` all ranks take equally many steps: `uneven` must be repeat or drop.")
        if self.window is not None and self.window < 1:
            raise UsageError(f"`window` must be at least 1 part, not {self.window}.")


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of sample numbers, each of one bucket, for ``LatentLoader`` or ``DataLoader(batch_sampler=...)``.

    ``dataset``: a LatentDataset, a Selection of one, a MixedDataset. The batches of an epoch follow from ``seed`` and
    the epoch alone, whatever the number of ranks (but with ``same_bucket``, their sequence); rank r of n takes every
    n-th. The last, smaller batch of each bucket is kept unless ``drop_last``. ``num_dropped`` and ``num_repeated``
    tell what an epoch leaves out or has twice. ``rank_and_world_size``: by default, those of this process.

    ``state_dict`` tells how many batches all ranks together have taken: any number of ranks can go on from it. In a
    loader with worker processes batches are taken ahead of time: there use LatentLoader's state, or torchdata's
    StatefulDataLoader. Memory: none a sample (permutation.py), 8 bytes a batch.
    """

    def __init__(
        self,
        dataset: Bucketed,
        batch_size: int | TokenBudget,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank_and_world_size: tuple[int, int] | None = None,
        options: SamplerOptions | None = None,
    ) -> None:
        self.rank, self.world_size = rank_and_world_size or rank_and_world_size_here()
        if isinstance(batch_size, int) and batch_size < 1:
            raise UsageError(f"`batch_size` must be at least 1, not {batch_size}.")
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank {self.rank} is not among {self.world_size} ranks (0 to {self.world_size - 1}).")
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.options = options or SamplerOptions()
        self._dataset = dataset
        self._facts = self._what_the_order_follows_from()
        self._epoch_built: Epoch | None = None
        self.epoch, self._done = 0, 0  # batches of the epoch that all ranks together have taken
        self._taken: NDArray[np.int64] | None = None  # of each bucket, before those; None: none
        self._way_built: Way | None = None

    def __len__(self) -> int:
        """Batches of a whole epoch, from its beginning, for this rank."""
        way = self._way_from(None, self._group)
        return num_steps(way.num_batches, self.rank, self.world_size, self.options.uneven)

    def __iter__(self) -> Iterator[list[int]]:
        refuse_second_sharding(1)
        way = self._way
        base = self._done
        far_away = getattr(self._dataset, "far_away", False)
        for step in range(num_steps(way.num_batches - base, self.rank, self.world_size, self.options.uneven)):
            self._done = base + (step + 1) * self.world_size
            place = base + step * self.world_size + self.rank
            if far_away and step % (_BATCHES_AHEAD // 2) == 0:
                self._prefetch(way, place)
            yield way.batch(place)
        self._start(self.epoch + 1, None, 0)

    def _prefetch(self, way: Way, place: int) -> None:
        """Tell the dataset which samples this rank comes to next, this batch's first."""
        stop = min(place + _BATCHES_AHEAD * self.world_size, way.num_batches)
        coming = [number for ahead in range(place, stop, self.world_size) for number in way.batch(ahead)]
        self._dataset.prefetch(coming)  # type: ignore[attr-defined]  # of those that are far away

    @property
    def num_dropped(self) -> int:
        """Samples that this epoch leaves out, on all ranks: by ``drop_last``, and by ``uneven="drop"``."""
        return self._way.epoch.num_dropped + self._way.num_left(self._stop)

    @property
    def num_repeated(self) -> int:
        """Samples that this epoch has once more, so that all ranks take equally many steps."""
        return self._way.num_repeated(self._stop)

    def set_epoch(self, epoch: int) -> None:
        """Start the given epoch from its first batch; where that epoch is under way already, it goes on."""
        if epoch != self.epoch:
            self._start(epoch, None, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where all ranks are: the epoch, and the batches of it that they have taken together. Plain numbers, lists
        and text; the same on every rank after the same step."""
        return {
            "version": _STATE_VERSION,
            "epoch": self.epoch,
            "done": self._done,
            "taken": self._way.taken.tolist(),
            "group": self._way.group,
            "facts": dict(self._facts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batch at which ``state_dict`` was taken, by whatever number of ranks.

        UsageError if it was taken for other samples or another order, saying what differs.
        """
        if state.get("version") != _STATE_VERSION:
            raise UsageError(f"The state is of version {state.get('version')}; this release reads {_STATE_VERSION}.")
        for name in self._facts | state["facts"]:
            then, now = state["facts"].get(name), self._facts.get(name)
            if then != now:
                raise UsageError(
                    f"The state was saved with {name} {then}; this sampler has {name} {now}. "
                    "Its samples or their order are not the same, so there is no place to go on from."
                )
        taken, done = np.array(state["taken"], np.int64), int(state["done"])
        if state["group"] != self._group:  # of another number of ranks, with `same_bucket`
            self.epoch = int(state["epoch"])
            taken, done = self._way_from(taken, state["group"]).taken_after(done), 0
        self._start(int(state["epoch"]), taken, done)

    @property
    def _group(self) -> int:
        return self.world_size if self.options.same_bucket else 1

    @property
    def _stop(self) -> int:
        """The place behind the last that any rank takes."""
        left = self._way.num_batches - self._done
        if self.options.uneven == "ragged":
            return self._way.num_batches
        return self._done + num_steps(left, 0, self.world_size, self.options.uneven) * self.world_size

    def _start(self, epoch: int, taken: NDArray[np.int64] | None, done: int) -> None:
        self.epoch, self._done = epoch, done
        self._taken, self._way_built = taken, None

    @property
    def _way(self) -> Way:
        if self._way_built is None:
            self._way_built = self._way_from(self._taken, self._group)
        return self._way_built

    def _way_from(self, taken: NDArray[np.int64] | None, group: int) -> Way:
        epoch = self._batches()
        start = np.zeros(len(epoch.counts), np.int64) if taken is None else taken
        return Way(epoch, start, group, whole=self.options.uneven == "drop")

    def _batches(self) -> Epoch:
        """Of this epoch."""
        if self._epoch_built is None or self._epoch_built.settings.epoch != self.epoch:
            pools = pools_of(self._dataset, self.seed, self.epoch)
            settings = EpochSettings(
                shuffle=self.shuffle,
                seed=self.seed,
                epoch=self.epoch,
                drop_last=self.drop_last,
                window=self.options.window,
            )
            self._epoch_built = Epoch(pools, {bucket: self.batch_size_of(bucket) for bucket in pools}, settings)
        return self._epoch_built

    def batch_size_of(self, bucket: Bucket) -> int:
        """How many samples a full batch of that bucket has."""
        size = self.batch_size
        return size.batch_size(bucket) if isinstance(size, TokenBudget) else size

    def _what_the_order_follows_from(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "seed": self.seed,
            "batch_size": self.batch_size if isinstance(self.batch_size, int) else str(self.batch_size),
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "window": self.options.window,
            "same_bucket": self.options.same_bucket,
        }
        if self.options.same_bucket:
            facts["uneven"] = self.options.uneven
        return facts | {f"the cache's {name}": value for name, value in identity_of(self._dataset).items()}


def identity_of(dataset: Bucketed) -> dict[str, Any]:
    """What tells the dataset's samples and their numbering from others."""
    if hasattr(dataset, "identity"):
        found: dict[str, Any] = dataset.identity()
        return found
    text = str([(bucket, [*map(str, ranges)]) for bucket, ranges in sorted(dataset.buckets().items())])
    return {"samples": hashlib.sha256(text.encode()).hexdigest()}
