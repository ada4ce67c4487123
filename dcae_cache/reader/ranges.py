"""Which samples lie where: consecutive samples of one bucket in one part, as arrays of whole caches.

Knows nothing of files, rows or orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Ranges(Sequence[range]):
    """Ranges of sample numbers, ascending, each of one part. ``parts``: the place of that part in the index."""

    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    parts: NDArray[np.int64]

    @staticmethod
    def of(ranges: Sequence[range]) -> Ranges:
        """The same, of plain ranges: each counts as a part of its own."""
        if isinstance(ranges, Ranges):
            return ranges
        starts = np.array([each.start for each in ranges], np.int64)
        counts = np.array([len(each) for each in ranges], np.int64)
        return Ranges(starts, counts, np.arange(len(starts)))

    @staticmethod
    def joined(pieces: Sequence[Ranges]) -> Ranges:
        """One after another."""
        columns = ([each.starts for each in pieces], [each.counts for each in pieces], [each.parts for each in pieces])
        return Ranges(*map(np.concatenate, columns))

    @property
    def size(self) -> int:
        """How many samples."""
        return int(self.counts.sum())

    def shifted(self, samples: int, parts: int) -> Ranges:
        """The same ranges in a numbering that has so many samples and parts before them."""
        return Ranges(self.starts + samples, self.counts, self.parts + parts)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> range: ...
    @overload
    def __getitem__(self, index: slice) -> list[range]: ...
    def __getitem__(self, index: int | slice) -> range | list[range]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = int(self.starts[index])
        return range(start, start + int(self.counts[index]))

    def __iter__(self) -> Iterator[range]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where every sample of a cache lies: run i is ``counts[i]`` samples from number ``starts[i]`` on, all of one
    bucket (``heights[i]``, ``widths[i]``, in pixels) of the part at place ``parts[i]`` of the index."""

    names: tuple[str, ...]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    parts: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]

    @staticmethod
    def of(parts: Sequence[dict[str, Any]]) -> Layout:
        """Of an index's parts: part by part, in a part bucket by bucket (sorted by height, then width)."""
        runs = [
            (place, height, width, count)
            for place, part in enumerate(parts)
            for height, width, count in sorted(
                (*map(int, bucket.split("x")), count) for bucket, count in part["buckets"].items()
            )
        ]
        places, heights, widths, counts = np.array(runs, np.int64).reshape(-1, 4).T.copy()
        starts = np.cumsum(counts) - counts
        return Layout(tuple(part["name"] for part in parts), starts, counts, places, heights, widths)

    @property
    def size(self) -> int:
        """How many samples."""
        return int(self.counts.sum())

    def run_of(self, number: int) -> int:
        """The run that a sample is in. Raises IndexError."""
        size = self.size
        if not -size <= number < size:
            raise IndexError(f"sample {number} of {size}")
        return int(np.searchsorted(self.starts, number % size, side="right")) - 1

    def buckets(self) -> dict[tuple[int, int], Ranges]:
        """(height, width) -> the runs of that bucket."""
        found = {}
        for height, width in sorted(set(zip(self.heights.tolist(), self.widths.tolist(), strict=True))):
            here = (self.heights == height) & (self.widths == width)
            found[height, width] = Ranges(self.starts[here], self.counts[here], self.parts[here])
        return found
