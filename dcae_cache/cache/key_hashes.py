"""Keys by numbers of 64 bits each, to compare millions of them in bounded memory. Exact: where two keys share a
number, the texts decide. Knows nothing of where keys come from.

The numbers are Python's own of a text, which a process draws anew: they are never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Hash = Callable[[str], int]
Numbers = NDArray[np.int64]


class KeyHashes:
    """The numbers of keys that come in blocks, every one different from the others. ``blocks`` gives the same keys
    whenever it is called; ``repeated`` holds, in their order, the keys that are there more than once."""

    def __init__(self, blocks: Callable[[], Iterable[pa.ChunkedArray]], hash_of: Hash = hash) -> None:
        self._hash_of, self._salt = hash_of, ""
        self.repeated: list[str] = []
        while True:
            each = [self.of(keys) for keys in blocks()]
            self.numbers = np.concatenate([np.empty(0, np.int64), *each])
            shared = _repeated(self.numbers)
            if len(shared) == 0:
                return
            self.repeated = _repeated_texts(zip(blocks(), each, strict=True), shared)
            if self.repeated:
                return
            self._salt += "+"  # other numbers for all: different keys had the same

    def of(self, keys: pa.ChunkedArray) -> Numbers:
        """The numbers of other keys, equal to those of the same keys here."""
        texts = keys.to_pylist()
        if self._salt:
            texts = [self._salt + text for text in texts]
        return np.fromiter(map(self._hash_of, texts), np.int64, len(texts))

    def find(self, numbers: Numbers, expected: int) -> Numbers:
        """Where each of some numbers is; -1 where it isn't. ``expected``: where the first is looked for, the others
        after it; looking there is quick."""
        if np.array_equal(numbers, self.numbers[expected : expected + len(numbers)]):
            return np.arange(expected, expected + len(numbers))
        if len(self.numbers) == 0:
            return np.full(len(numbers), -1)
        order, ascending = self._sorted
        places = np.minimum(np.searchsorted(ascending, numbers), len(ascending) - 1)
        return np.where(ascending[places] == numbers, order[places], -1)

    @cached_property
    def _sorted(self) -> tuple[Numbers, Numbers]:
        order = np.argsort(self.numbers)
        return order, self.numbers[order]


def _repeated(numbers: Numbers) -> Numbers:
    """The numbers that are there more than once, ascending."""
    ascending = np.sort(numbers)
    return np.unique(ascending[1:][ascending[1:] == ascending[:-1]])


def _repeated_texts(blocks: Iterable[tuple[pa.ChunkedArray, Numbers]], shared: Numbers) -> list[str]:
    """Of the keys with these numbers those that are there more than once."""
    counts: dict[str, int] = {}
    for keys, numbers in blocks:
        for place in np.flatnonzero(np.isin(numbers, shared)).tolist():
            key = keys[place].as_py()
            counts[key] = counts.get(key, 0) + 1
    return [key for key, count in counts.items() if count > 1]
