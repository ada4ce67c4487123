"""The digest by which a committed part states which entries it was made for: sizes and times are in it. It is the
sha256 of each entry's values as a JSON list, one after the other, without ``max_samples`` where that is None.

Knows nothing of plans or parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .listing import LISTING
from .pages import Pages

_PLAIN = bytes(range(32, 127))  # what JSON in ASCII writes as it is, but for quotes and backslashes
_KEPT = 2  # pages whose lines are in memory
_TEXT = pa.large_string()  # the lines of a page may be longer than its texts, whose places take 32 bits
_Lines = tuple[memoryview, NDArray[np.int64]]  # of a page, one after the other; where each begins, and the last ends


def digest_of_entries(entries: Iterable[tuple[Any, ...]]) -> str:
    """The digest of entries as tuples, in hexadecimal digits."""
    return hashlib.sha256("".join(_lines_of(entries)).encode()).hexdigest()


class EntryDigests:
    """The digests of runs of entries in pages with the columns of ``LISTING``, and maybe others. A run that finds a
    million samples made asks for all of them: no entry becomes an object, unless JSON escapes a letter of its page."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._lines = lru_cache(_KEPT)(self._make_lines)

    def of(self, start: int, stop: int) -> str:
        """The digest of the entries from ``start`` to before ``stop``."""
        digest = hashlib.sha256()
        for number, first, last in self._pages.ranges(start, stop):
            lines, places = self._lines(number)
            digest.update(lines[places[first] : places[last]])
        return digest.hexdigest()

    def _make_lines(self, number: int) -> _Lines:
        each = [_lines_of_batch(batch) for batch in self._pages.page(number).to_batches() if batch.num_rows]
        lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(places) for _, places in each)])
        return memoryview(b"".join(lines for lines, _ in each)), np.cumsum(lengths)


def _lines_of_batch(batch: pa.RecordBatch) -> _Lines:
    texts = _unescaped(batch)
    lines = _as_bytes(texts)[0].tobytes()
    if lines.translate(None, _PLAIN) or b"\\" in lines or lines.count(b'"') != 4 * batch.num_rows:
        columns = (batch[name].to_pylist() for name in LISTING.names)
        texts = pa.array(_lines_of(zip(*columns, strict=True)), _TEXT)
    return _as_bytes(texts)


def _as_bytes(texts: pa.LargeStringArray) -> _Lines:
    places = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(texts.buffers()[2] or b"")[places[0] : places[-1]], places


def _unescaped(batch: pa.RecordBatch) -> pa.LargeStringArray:
    """The lines of entries of whose texts no letter is escaped."""
    key, location, num_bytes, mtime_ns, most = (pc.cast(batch[name], _TEXT) for name in LISTING.names)
    opening, between, after, comma, end, empty = (pa.scalar(t, _TEXT) for t in ('["', '", "', '", ', ", ", "]", ""))
    last = end
    if most.null_count < len(most):
        last = pc.fill_null(pc.binary_join_element_wise(comma, most, end, empty), end)
    texts = (opening, key, between, location, after, num_bytes, comma, mtime_ns, last)
    return pc.binary_join_element_wise(*texts, empty)


def _lines_of(entries: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    quoted = encode_basestring_ascii
    for key, location, num_bytes, mtime_ns, max_samples in entries:
        last = "" if max_samples is None else f", {max_samples}"
        yield f"[{quoted(key)}, {quoted(location)}, {num_bytes}, {mtime_ns}{last}]"
