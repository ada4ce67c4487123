"""All batches of one epoch, in order: which bucket comes when, and which samples a batch is made of.

Batches of a bucket are always taken in the same order, 0, 1, 2, ...; only the sequence of the buckets depends on how
many batches are taken at a time. So the batches taken so far are told by one number a bucket, whatever comes after.
Knows nothing of ranks or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .batch import BatchNumbers
from .pool import Bucket, Order, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSettings:
    """What, beside the samples, the batches of an epoch follow from. ``window``: how many parts are open at a time
    when shuffling; None: all."""

    shuffle: bool
    seed: int
    epoch: int
    drop_last: bool
    window: int | None


class BucketBatches:
    """The batches of one bucket."""

    def __init__(self, order: Order, batch_size: int, settings: EpochSettings, short: float) -> None:
        self.order, self.batch_size = order, batch_size
        size = order.pool.size
        self._rest = size % batch_size
        self.num_dropped = self._rest if settings.drop_last else 0
        self.count = size // batch_size + (self._rest > 0 and not settings.drop_last)
        self._short = self.count  # the place of the smaller batch; behind the end: there is none
        if self._rest and not settings.drop_last:
            self._short = int(short * self.count) if settings.shuffle else self.count - 1

    def samples_in(self, index: int) -> int:
        return self._rest if index == self._short else self.batch_size

    def at(self, index: int, settings: EpochSettings) -> BatchNumbers:
        first = self._start(index)
        numbers, turns = self.order.at(first, first + self.samples_in(index))
        return BatchNumbers(
            numbers,
            seed=settings.seed,
            epoch=settings.epoch,
            turns=None if turns is None else turns.tolist(),
        )

    def before(self, place: int) -> int:
        """How many batches begin before a place of the order."""
        shift = self.batch_size - self._rest if place > self._start(self._short) else 0
        return min(-(-(place + shift) // self.batch_size), self.count)

    def _start(self, index: int) -> int:
        return index * self.batch_size - (self.batch_size - self._rest if index > self._short else 0)


class Epoch:
    """The batches of an epoch, by bucket and index, and sequences of buckets."""

    def __init__(self, pools: Mapping[Bucket, Pool], sizes: Mapping[Bucket, int], settings: EpochSettings) -> None:
        self.settings = settings
        windows = self._windows(pools) if settings.shuffle and settings.window else None
        random = np.random.default_rng([settings.seed, settings.epoch, 1])
        self.buckets: list[Bucket] = list(pools)
        self.batches: list[BucketBatches] = []
        for bucket, pool in pools.items():
            key = (settings.seed, settings.epoch, bucket) if settings.shuffle else None
            self.batches.append(
                BucketBatches(Order(pool, windows, key), sizes[bucket], settings, float(random.random()))
            )
        self.counts = np.array([each.count for each in self.batches], np.int64)
        self.num_batches = int(self.counts.sum())
        self.num_samples = sum(pool.size for pool in pools.values())
        self.num_dropped = sum(each.num_dropped for each in self.batches)

    def batch(self, bucket: int, index: int) -> BatchNumbers:
        """Batch ``index`` of the bucket at that place of ``buckets``."""
        return self.batches[bucket].at(index, self.settings)

    def sequence(self, taken: NDArray[np.int64], group: int, *, whole: bool) -> NDArray[np.int64]:
        """The places of the buckets whose batches come next, ``group`` of them at a time, when so many of each are
        taken. ``whole``: groups that can't be filled don't come."""
        num_windows = len(self.batches[0].order.ends) if self.batches else 0
        done = np.zeros(len(self.batches), np.int64)
        pieces = []
        random = np.random.default_rng([self.settings.seed, self.settings.epoch, 2, group, *taken.tolist()])
        for window in range(num_windows):
            before = [each.before(int(each.order.ends[window])) for each in self.batches]
            left = np.maximum(np.array(before, np.int64) - taken, 0)
            last = window == num_windows - 1
            groups = left // group if whole and last else -(-left // group)
            if whole:  # a group may begin in one window only if the bucket has enough left to fill it
                groups = np.minimum(groups, np.maximum(self.counts - taken, 0) // group)
            piece = np.repeat(np.arange(len(self.batches)), groups - done)
            if self.settings.shuffle:
                random.shuffle(piece)
            pieces.append(piece)
            done = groups
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def _windows(self, pools: Mapping[Bucket, Pool]) -> NDArray[np.int64]:
        """For each part, the window it is in: parts in random order, so many at a time."""
        num_parts = max((int(pool.ranges.parts.max()) + 1 for pool in pools.values() if len(pool.ranges)), default=1)
        order = np.random.default_rng([self.settings.seed, self.settings.epoch, 0]).permutation(num_parts)
        windows: NDArray[np.int64] = np.argsort(order) // (self.settings.window or num_parts)
        return windows


class Way:
    """What comes of an epoch after the batches that are taken: place 0, 1, 2, ..., in groups of one bucket each."""

    def __init__(self, epoch: Epoch, taken: NDArray[np.int64], group: int, *, whole: bool) -> None:
        self.epoch, self.taken, self.group = epoch, taken, group
        self.sequence = epoch.sequence(taken, group, whole=whole)
        self.num_batches = len(self.sequence) * group
        by_bucket = np.argsort(self.sequence, kind="stable")
        self._groups = np.bincount(self.sequence, minlength=len(taken))
        self._turns = np.empty(len(self.sequence), np.int64)  # how many groups of the same bucket came before
        self._turns[by_bucket] = np.arange(len(self.sequence)) - np.repeat(
            np.cumsum(self._groups) - self._groups, self._groups
        )

    def batch(self, place: int) -> BatchNumbers:
        """The batch at a place; behind the last one it begins again."""
        return self.epoch.batch(*self._at(place))

    def taken_after(self, places: int) -> NDArray[np.int64]:
        """Batches taken of each bucket when so many places are taken, too."""
        groups = np.bincount(self.sequence[: places // self.group], minlength=len(self.taken))
        taken: NDArray[np.int64] = np.minimum(self.taken + groups * self.group, self.epoch.counts)
        return taken

    def num_repeated(self, stop: int) -> int:
        """Samples that come once more in the places before ``stop``."""
        again = sum(self._samples(*self._at(place)) for place in range(self.num_batches, stop))
        for bucket, (count, end) in enumerate(zip(self.epoch.counts.tolist(), self._ends(), strict=True)):
            again += sum(self._samples(bucket, index % count) for index in range(count, end))
        return again

    def num_left(self, stop: int) -> int:
        """Samples that don't come in the places before ``stop``."""
        left = sum(self._samples(*self._at(place)) for place in range(stop, self.num_batches))
        for bucket, (count, end) in enumerate(zip(self.epoch.counts.tolist(), self._ends(), strict=True)):
            left += sum(self._samples(bucket, index) for index in range(end, count))
        return left

    def _at(self, place: int) -> tuple[int, int]:
        turn, member = divmod(place % self.num_batches, self.group)
        bucket = int(self.sequence[turn])
        index = int(self.taken[bucket] + self._turns[turn] * self.group) + member
        return bucket, index % int(self.epoch.counts[bucket])

    def _samples(self, bucket: int, index: int) -> int:
        return self.epoch.batches[bucket].samples_in(index)

    def _ends(self) -> list[int]:
        ends: list[int] = (self.taken + self._groups * self.group).tolist()
        return ends
