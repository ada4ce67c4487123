"""A table in pages, of which only those in hand take memory, so that a plan of ten million entries does not.

A page is made when it is asked for: cut from a table, read from a file, or made of another table's pages. Knows
nothing of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

PAGE_ROWS = 65_536
_KEPT = 2  # pages in memory, the ones that were asked for last


class Pages:
    """The rows of a table. ``counts``: how many each page has; ``make`` gives a page by its number, as a table of
    ``schema``, the same one whenever it is called."""

    def __init__(self, schema: pa.Schema, counts: Sequence[int], make: Callable[[int], pa.Table]) -> None:
        self.schema = schema
        self.offsets: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.page = lru_cache(_KEPT)(make)

    @staticmethod
    def of_table(table: pa.Table) -> Pages:
        """The pages of a table in memory."""
        starts = range(0, table.num_rows, PAGE_ROWS)
        counts = [min(PAGE_ROWS, table.num_rows - start) for start in starts]
        return Pages(table.schema, counts, lambda number: table.slice(starts[number], PAGE_ROWS))

    @staticmethod
    def joined(each: Sequence[Pages]) -> Pages:
        """The rows of several tables of one schema, one after the other."""
        makes = [(pages, number) for pages in each for number in range(pages.num_pages)]
        counts = [count for pages in each for count in np.diff(pages.offsets).tolist()]
        return Pages(each[0].schema, counts, lambda number: makes[number][0].page(makes[number][1]))

    @property
    def num_rows(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_pages(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[pa.Table]:
        return map(self.page, range(self.num_pages))

    def rows(self, start: int, stop: int) -> pa.Table:
        """The rows from ``start`` to before ``stop``."""
        pieces = [self.page(number).slice(first, last - first) for number, first, last in self.ranges(start, stop)]
        return pa.concat_tables([self.schema.empty_table(), *pieces])

    def ranges(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Where the rows from ``start`` to before ``stop`` are: a page, its first of them, and the one after its
        last."""
        if start >= stop:
            return
        first, last = np.searchsorted(self.offsets, [start, stop - 1], side="right") - 1
        for number in range(int(first), int(last) + 1):
            begin, end = self.offsets[number : number + 2].tolist()
            yield number, max(start - begin, 0), min(stop, end) - begin

    def take(self, places: NDArray[np.int64]) -> pa.Table:
        """The rows at these places, in their order."""
        if len(places) == 0 or np.array_equal(places, np.arange(places[0], places[0] + len(places))):
            first = int(places[0]) if len(places) else 0
            return self.rows(first, first + len(places))
        order = np.argsort(places, kind="stable")
        ascending = places[order]
        bounds = np.searchsorted(ascending, self.offsets)
        tables = [
            self.page(number).take(pa.array(ascending[start:stop] - self.offsets[number]))
            for number, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
            if start < stop
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(tables).combine_chunks().take(pa.array(back))

    def whole(self) -> pa.Table:
        """All rows in memory."""
        return pa.concat_tables([self.schema.empty_table(), *self]).combine_chunks()

    def write(self, writer: pq.ParquetWriter) -> None:
        """Write all rows in groups of ``PAGE_ROWS``, however long the pages are."""
        for start in range(0, max(self.num_rows, 1), PAGE_ROWS):
            writer.write_table(self.rows(start, min(start + PAGE_ROWS, self.num_rows)), row_group_size=PAGE_ROWS)
