"""The samples of one bucket that an epoch goes through, and their order. Knows nothing of batches, ranks or files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .permutation import Permutation
from .ranges import Ranges

_BLOCK = 8192
Samples = tuple[NDArray[np.int64], NDArray[np.int64] | None]  # numbers, and turns where samples come repeatedly
Bucket = tuple[int, int]  # (height, width) in pixels


class Bucketed(Protocol):
    """What a sampler needs to know of a dataset. It may also have ``identity()``, and ``pools(seed, epoch)`` where an
    epoch isn't simply every sample once."""

    def buckets(self) -> dict[Bucket, list[range]] | dict[Bucket, Ranges]:
        """(height, width) in pixels -> the sample numbers in that bucket, as ascending ranges."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Samples of one bucket, part by part. ``numbers``: the sample at each place of the ranges, ascending, repeated
    ones several times; None where a place is the sample's number itself."""

    ranges: Ranges
    numbers: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        return self.ranges.size

    @staticmethod
    def chosen(ranges: Ranges, numbers: NDArray[np.int64]) -> Pool:
        """The pool of these numbers (ascending) only; all lie in the ranges."""
        ends = ranges.starts + ranges.counts
        first = np.searchsorted(numbers, ranges.starts)
        return Pool(Ranges(first, np.searchsorted(numbers, ends) - first, ranges.parts), numbers)

    def samples(self, places: NDArray[np.int64]) -> Samples:
        """The sample numbers at places of the ranges, and how often each came before where some come repeatedly."""
        if self.numbers is None:
            return places, None
        numbers = self.numbers[places]
        return numbers, places - np.searchsorted(self.numbers, numbers)


class Order:
    """A pool's samples in an order. ``ends``: where each window of parts ends in it; samples of a window come before
    those of the next. ``windows``: for each part, the window that it is in; None: one window of all. ``key``: what a
    random order follows from; None: as they lie."""

    def __init__(self, pool: Pool, windows: NDArray[np.int64] | None, key: tuple[object, ...] | None) -> None:
        self.pool, self._key = pool, key
        ranges = pool.ranges
        self.ends = np.array([pool.size])
        if windows is not None:
            here = windows[ranges.parts]
            way = np.argsort(here, kind="stable")
            ranges = Ranges(ranges.starts[way], ranges.counts[way], ranges.parts[way])
            last = np.searchsorted(here[way], np.arange(windows.max() + 1), side="right")
            self.ends = np.concatenate([[0], np.cumsum(ranges.counts)])[last]
        self._stops = np.cumsum(ranges.counts)  # of the ranges, in the order in which they are gone through
        self._shifts = ranges.starts - (self._stops - ranges.counts)
        self._blocks: dict[int, Samples] = {}

    def at(self, first: int, stop: int) -> Samples:
        """The samples from place ``first`` to before ``stop``, as ``Pool.samples`` gives them."""
        pieces = []
        for at in range(first // _BLOCK, -(-stop // _BLOCK)):
            here = slice(max(first - at * _BLOCK, 0), stop - at * _BLOCK)
            numbers, turns = self._block(at)
            pieces.append((numbers[here], None if turns is None else turns[here]))
        if len(pieces) == 1:
            return pieces[0]
        repeated = [turns for _, turns in pieces if turns is not None]
        return np.concatenate([numbers for numbers, _ in pieces]), np.concatenate(repeated) if repeated else None

    def _block(self, at: int) -> Samples:
        """Some thousand samples at a time, as single batches would cost nearly as much; the last ones are kept."""
        if at not in self._blocks:
            places = np.arange(at * _BLOCK, min((at + 1) * _BLOCK, self.pool.size))
            if self._key is not None:
                places = self._shuffled(places, self._key)
            run = np.searchsorted(self._stops, places, side="right")
            self._blocks = {at: self.pool.samples(places + self._shifts[run])}
        return self._blocks[at]

    def _shuffled(self, places: NDArray[np.int64], key: tuple[object, ...]) -> NDArray[np.int64]:
        if len(self.ends) == 1:
            return Permutation(self.pool.size, *key, 0)(places)
        window = np.searchsorted(self.ends, places, side="right")
        pieces = []
        for number in range(int(window[0]), int(window[-1]) + 1):
            start = int(self.ends[number - 1]) if number else 0
            permutation = Permutation(int(self.ends[number]) - start, *key, number)
            pieces.append(permutation(places[window == number] - start) + start)
        return np.concatenate(pieces)


def pools_of(dataset: Bucketed, seed: int, epoch: int) -> dict[Bucket, Pool]:
    """The pools of an epoch, sorted by bucket."""
    if hasattr(dataset, "pools"):
        found: dict[Bucket, Pool] = dataset.pools(seed, epoch)
        return dict(sorted(found.items()))
    buckets: dict[Bucket, Sequence[range]] = dict(dataset.buckets())
    return {bucket: Pool(Ranges.of(ranges)) for bucket, ranges in sorted(buckets.items())}
