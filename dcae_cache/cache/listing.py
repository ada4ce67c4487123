"""What a source lists, before it is planned: the entries as pages, beyond 16 MiB in a file without a name, which the
system removes with the process. Knows nothing of parts.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from threading import Lock
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import CacheError, SourceError
from ..records import Entry
from .key_hashes import Hash, KeyHashes
from .pages import Pages

LISTING = pa.schema(
    [
        ("key", pa.string()),
        ("location", pa.string()),
        ("num_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("max_samples", pa.int64()),
    ]
)
_PAGE_ROWS = 2**14  # Python objects at a time
_IN_MEMORY_BYTES = 2**24  # compressed; a million entries take about as much


class Listing(Pages):
    """The entries in the order they were listed, columns as in ``LISTING``. ``hashes``: of their keys."""

    def __init__(self, file: IO[bytes], counts: Sequence[int], hash_of: Hash) -> None:
        weakref.finalize(self, file.close)
        reader, lock = pa.ipc.open_file(file), Lock()
        super().__init__(LISTING, counts, partial(_page, reader, lock))
        self.hashes = KeyHashes(lambda: (page["key"] for page in self), hash_of)


def list_entries(entries: Iterable[Entry], page_rows: int = _PAGE_ROWS, hash_of: Hash = hash) -> Listing:
    """The entries of a source, ``page_rows`` of them in memory as objects at a time.

    Raises SourceError when two entries have the same key, CacheError where the listing can't be kept.
    """
    with ExitStack() as unless_listed:
        file = unless_listed.enter_context(tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES))
        counts = _write(file, _batches(iter(entries), page_rows))
        listing = Listing(file, counts, hash_of)
        _refuse_repeated(listing)
        unless_listed.pop_all()  # it is closed with the listing
    return listing


def _write(file: IO[bytes], batches: Iterator[pa.RecordBatch]) -> list[int]:
    """Write all batches; returns how many rows each has."""
    counts = []
    writer = pa.ipc.new_file(file, LISTING, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    for batch in batches:
        with _keeping():
            writer.write_batch(batch)
        counts.append(batch.num_rows)
    with _keeping():
        writer.close()
    return counts


@contextmanager
def _keeping() -> Iterator[None]:
    """Say what to do where the disk of the temporary folder takes no more."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"The listing of the source can't be kept in {tempfile.gettempdir()} ({error.strerror or error}). "
            "Free some space there, or name another folder in the environment variable TMPDIR."
        ) from error


def _batches(entries: Iterator[Entry], page_rows: int) -> Iterator[pa.RecordBatch]:
    while page := list(islice(entries, page_rows)):
        columns = zip(zip(*page, strict=True), LISTING, strict=True)
        yield pa.RecordBatch.from_arrays([pa.array(values, field.type) for values, field in columns], schema=LISTING)


def _page(reader: pa.ipc.RecordBatchFileReader, lock: Lock, number: int) -> pa.Table:
    with lock:  # one position for all who read
        return pa.Table.from_batches([reader.get_batch(number)])


def _refuse_repeated(listing: Listing) -> None:
    if not listing.hashes.repeated:
        return
    key = listing.hashes.repeated[0]
    places = [where for page in listing for where in page.filter(pc.equal(page["key"], key))["location"].to_pylist()]
    raise SourceError(
        f"Two samples have the key {key!r}: {places[0]} and {places[1]}. Keys are paths without their suffix and must "
        "be unique; rename one of the two."
    )
