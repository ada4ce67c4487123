"""Columns of a mapped Arrow file that are read together, in the ways that they can lie in it.

Knows nothing of which way is the best for which columns, or of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from mmap import mmap
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .packed import MISSING_NUMBER, SEPARATOR

_NONE = -1
Whole = NDArray[np.int64]
Found = dict[str, list[str] | NDArray[Any]]


class Group(Protocol):
    """Columns read together."""

    def take(self, batch: Whole, line: Whole) -> Found:
        """Their values in these lines of these record batches: text as lists, numbers as arrays."""
        ...


class MappedBatches:
    """Record batches and the mapped file that they lie in."""

    def __init__(self, batches: Sequence[pa.RecordBatch], file: mmap) -> None:
        self.file, self._batches = file, batches
        self.bytes, self.words = self.viewed_as(np.uint8), self.viewed_as(np.int64)

    def viewed_as(self, dtype: Any) -> NDArray[Any]:
        """The whole file as values of that type."""
        return np.frombuffer(self.file, dtype, count=len(self.file) // np.dtype(dtype).itemsize)

    def begins(self, names: Sequence[str], which: int) -> Whole:
        """Where each batch's buffer of that number begins in the file, of each column: [column, record batch]; _NONE
        where there is none."""
        start = pa.py_buffer(self.file).address
        buffers = [[batch.column(name).buffers()[which] for batch in self._batches] for name in names]
        return np.array(
            [[buffer.address - start if buffer else _NONE for buffer in column] for column in buffers], np.int64
        )

    def texts_at(self, starts: Whole, ends: Whole) -> list[bytes]:
        """The bytes of the file between these places.

        Looks at both ends of all of them at once first: memory answers many questions in the time of one, and the
        loop that copies would ask one after another.
        """
        self.bytes.take(starts)
        self.bytes.take(ends - 1)
        file = self.file
        return [file[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


class TextColumns:
    """Columns of text, each in its own place."""

    def __init__(self, mapped: MappedBatches, names: Sequence[str]) -> None:
        self._mapped, self._names = mapped, names
        self._ends = mapped.begins(names, 1) // mapped.words.itemsize
        self._data = mapped.begins(names, 2)

    def take(self, batch: Whole, line: Whole) -> Found:
        """As Group says; missing text is ""."""
        words, count = self._mapped.words, len(batch)
        ends = (self._ends.take(batch, 1) + line).ravel()
        data = self._data.take(batch, 1).ravel()
        texts = [text.decode() for text in self._mapped.texts_at(data + words.take(ends), data + words.take(ends + 1))]
        return {name: texts[i * count : (i + 1) * count] for i, name in enumerate(self._names)}


class PackedTexts:
    """Some of the texts that lie side by side in a packed column."""

    def __init__(self, mapped: MappedBatches, column: str, packed: Sequence[str], names: Sequence[str]) -> None:
        self._mapped, self._size = mapped, len(packed)
        self._ends = mapped.begins([column], 1)[0] // mapped.words.itemsize
        self._data = mapped.begins([column], 2)[0]
        self._places = {name: packed.index(name) for name in names}
        self._one_by_one = TextColumns(mapped, names)

    def take(self, batch: Whole, line: Whole) -> Found:
        """As Group says; missing text is ""."""
        words, ends, data = self._mapped.words, self._ends.take(batch) + line, self._data.take(batch)
        joined = b"".join(self._mapped.texts_at(data + words.take(ends), data + words.take(ends + 1)))
        texts = joined.decode().split(SEPARATOR)
        if len(texts) != self._size * len(batch) + 1:  # a text has a separator within
            return self._one_by_one.take(batch, line)
        return {name: texts[place : -1 : self._size] for name, place in self._places.items()}


class NumberColumns:
    """Columns of numbers of one type, each in its own place."""

    def __init__(self, mapped: MappedBatches, names: Sequence[str], kind: pa.DataType) -> None:
        self._mapped, self._names = mapped, names
        self._values = mapped.viewed_as(kind.to_pandas_dtype())
        self._firsts = mapped.begins(names, 1) // self._values.itemsize
        self._valid = mapped.begins(names, 0)  # of the bits that tell which are missing
        self._may_miss = bool((self._valid != _NONE).any())

    def take(self, batch: Whole, line: Whole) -> Found:
        """As Group says; a missing number is MISSING_NUMBER."""
        values = self._values.take(self._firsts.take(batch, 1) + line)
        if self._may_miss:
            valid = self._valid.take(batch, 1)
            bytes_ = self._mapped.bytes.take(np.where(valid != _NONE, valid + line // 8, 0))
            values[(valid != _NONE) & (bytes_ >> (line % 8).astype(np.uint8) & 1 == 0)] = MISSING_NUMBER
        return dict(zip(self._names, _as_int64(values), strict=True))


class PackedNumbers:
    """Some of the numbers (int32) that lie side by side in a packed column."""

    def __init__(self, mapped: MappedBatches, column: str, packed: Sequence[str], names: Sequence[str]) -> None:
        self._values, self._size, self._names = mapped.viewed_as(np.int32), len(packed), names
        self._firsts = mapped.begins([column], 2)[0] // self._values.itemsize  # behind two that say what is missing
        self._places = np.array([[packed.index(name)] for name in names])

    def take(self, batch: Whole, line: Whole) -> Found:
        """As Group says; a missing number is MISSING_NUMBER."""
        firsts = self._firsts.take(batch) + line * self._size
        return dict(zip(self._names, _as_int64(self._values.take(self._places + firsts)), strict=True))


def _as_int64(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.int64) if values.dtype == np.int32 else values
