"""From the parts of a source to batches of pixels, on threads, in source order, with bounded memory.

Decoding and resizing run on a thread pool (Pillow lets go of the interpreter lock for both). Knows nothing of torch,
models or files on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError
from ..records import Bucket, Part, Row, SampleRef, StoredAt
from ..sources import Source
from .rows import LoadSettings, Made, decode_sample, num_left_out

MAX_WAITING_BYTES = 2**29  # of pixels in batches that aren't full yet
MAX_FLYING_BYTES = 2**30  # of pixels decoded ahead
MAX_ENCODED_BYTES = 2**29  # of images still encoded that a source has read ahead


@dataclass(slots=True)
class PartInProgress:
    """A part whose samples are on their way. ``rows`` grows in source order; a row's index is its slot.

    ``left_out``: views that images are too small for; ``not_made``: these, and all but one of each skipped image.
    """

    part: Part
    rows: list[Row] = field(default_factory=list)
    left_out: int = 0
    not_made: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one bucket and one part, and the slots their latents belong to."""

    part: PartInProgress
    bucket: Bucket
    slots: list[int]
    images: list[NDArray[np.uint8] | StoredAt]


@dataclass(frozen=True, slots=True)
class PartLoaded:
    """Follows the last batch of a part."""

    part: PartInProgress


@dataclass(frozen=True, slots=True)
class PartFailed:
    """Takes the place of PartLoaded where the source could not give the part whole: it must be left out."""

    part: PartInProgress
    error: SourceError


PartEnd = PartLoaded | PartFailed


def load_batches(source: Source, parts: Iterable[Part], settings: LoadSettings) -> Generator[Batch | PartEnd]:
    """The batches of each part in turn, full ones as soon as they are full, each part ended by PartLoaded, or by
    PartFailed where the source broke off.

    A bucket's samples keep source order, and batches never cross parts: what a batch holds depends on the part and
    the batch size alone, not on timing. With many buckets (``native``) few batches fill up: those that wait longest
    go first when too many pixels are waiting.
    """
    with ThreadPoolExecutor(settings.workers, thread_name_prefix="decode") as pool:
        waiting = _WaitingBatches(settings.batch_size)
        try:
            for item in _decode_in_order(source, parts, settings, pool):
                if isinstance(item, PartLoaded | PartFailed):
                    yield from waiting.take_all()
                    yield item
                    continue
                part, made = item
                part.left_out += num_left_out(made[0][0], settings.fitting)
                part.not_made += settings.fitting.num_views - len(made)
                for row, image in made:
                    part.rows.append(row)
                    if image is not None and row.bucket is not None:
                        yield from waiting.add(part, row.bucket, image)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _WaitingBatches:
    """Batches being filled, one for each bucket, oldest first."""

    def __init__(self, batch_size: Callable[[Bucket], int]) -> None:
        self._batch_size = batch_size
        self._batches: dict[Bucket, Batch] = {}
        self._num_bytes = 0

    def add(self, part: PartInProgress, bucket: Bucket, image: NDArray[np.uint8] | StoredAt) -> Iterator[Batch]:
        """Add the image of the part's last row; gives the batches that have to go because of it."""
        batch = self._batches.setdefault(bucket, Batch(part, bucket, [], []))
        batch.slots.append(len(part.rows) - 1)
        batch.images.append(image)
        self._num_bytes += _num_bytes(image)
        if len(batch.slots) >= self._batch_size(bucket):
            yield self._take(bucket)
        while self._num_bytes > MAX_WAITING_BYTES:
            yield self._take(next(iter(self._batches)))

    def take_all(self) -> Iterator[Batch]:
        for bucket in sorted(self._batches):
            yield self._take(bucket)

    def _take(self, bucket: Bucket) -> Batch:
        batch = self._batches.pop(bucket)
        self._num_bytes -= sum(map(_num_bytes, batch.images))
        return batch


def _num_bytes(image: NDArray[np.uint8] | StoredAt | None) -> int:
    return image.nbytes if isinstance(image, np.ndarray) else 0


_Decoded = tuple[PartInProgress, Made]


def _decode_in_order(
    source: Source, parts: Iterable[Part], settings: LoadSettings, pool: ThreadPoolExecutor
) -> Iterator[_Decoded | PartEnd]:
    """Submit samples ahead, take results in order. In flight, across part boundaries, are at most four images for each
    worker, and fewer where their pixels would take more than MAX_FLYING_BYTES: as many as the workers in any case.
    Fewer still where what the source has read ahead takes more than MAX_ENCODED_BYTES."""
    in_flight: deque[PartEnd | tuple[PartInProgress, Future[Made], int]] = deque()
    largest = 0  # bytes of an image's views so far: what those still being decoded are counted as
    encoded = 0  # bytes in flight

    def take() -> _Decoded | PartEnd:
        nonlocal largest, encoded
        item = in_flight.popleft()
        if not isinstance(item, tuple):
            return item
        made = item[1].result()
        largest = max(largest, sum(_num_bytes(image) for _, image in made))
        encoded -= item[2]
        return item[0], made

    def is_full() -> bool:
        room = max(settings.workers, min(4 * settings.workers, MAX_FLYING_BYTES // max(1, largest)))
        return len(in_flight) > room or encoded > MAX_ENCODED_BYTES

    for part in parts:
        progress, known = PartInProgress(part), settings.known(part)
        for ref in _refs(source, part):
            if isinstance(ref, SourceError):
                in_flight.append(PartFailed(progress, ref))
                break
            in_flight.append((progress, pool.submit(decode_sample, ref, settings, known), ref.num_bytes))
            encoded += ref.num_bytes
            while is_full():
                yield take()
        else:
            in_flight.append(PartLoaded(progress))
    while in_flight:
        yield take()


def _refs(source: Source, part: Part) -> Iterator[SampleRef | SourceError]:
    """The part's samples, and the error where it can't be read (on) or holds a key twice."""
    places: dict[str, str] = {}
    try:
        for ref in source.read(part):
            if source.entries_per_part is not None:  # otherwise the keys are the plan's, which are unique
                first = places.setdefault(ref.key, ref.source)
                if first is not ref.source:
                    yield SourceError(_same_key(ref.key, first, ref.source))
                    return
            yield ref
    except SourceError as error:
        yield error


def _same_key(key: str, first: str, second: str) -> str:
    return f"Two samples have the key {key!r}: {first} and {second}. Keys must be unique; rename one of the two."
