"""From the parts of a source to batches of pixels, on threads, in source order, with bounded memory.

Decoding and resizing run on a thread pool, or in processes that its threads wait for (decoders.py). Knows nothing of
torch, models or files on disk.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError
from ..records import Bucket, Part, Row, SampleRef, StoredAt
from ..sources import Source
from .decoders import Decoders
from .rows import Known, LoadSettings, Made, decode_sample, num_left_out

MAX_WAITING_BYTES = 2**29  # of pixels in batches that aren't full yet
MAX_FLYING_BYTES = 2**30  # of pixels decoded ahead
MAX_ENCODED_BYTES = 2**29  # of images still encoded that a source has read ahead
_MOST_AT_ONCE = 8  # images that a process is given by one call


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
    settings.trace.name_lane("reader and loader")
    with (
        Decoders(settings) if settings.processes else nullcontext() as decoders,
        ThreadPoolExecutor(settings.workers, "decode") as pool,
    ):
        waiting, ahead = _WaitingBatches(settings.batch_size), _Ahead(settings, pool, decoders)
        try:
            for item in _decode_in_order(source, parts, settings, ahead):
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
            ahead.close()
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


@dataclass(slots=True)
class _Group:
    """Samples of one part that are decoded by one call."""

    part: PartInProgress
    known: Known
    refs: list[SampleRef] = field(default_factory=list)
    made: Future[list[Made]] | None = None
    num_bytes: int = 0  # of pixels, once they are there


class _Ahead:
    """Samples on their way, taken out in the order they were put in. In flight, across part boundaries, are at most
    so many images that no worker waits, and fewer where their pixels would take more than MAX_FLYING_BYTES: as many as
    the workers in any case. Fewer still where what the source has read ahead takes more than MAX_ENCODED_BYTES.

    How large an image is shows only when it is decoded: where larger ones come than before, those that are next in
    turn alone are decoded until what is there has been taken.

    A thread decodes an image by itself; a process is given several at once where they are small, since each call costs
    this one as much as an image does.
    """

    def __init__(self, settings: LoadSettings, pool: ThreadPoolExecutor, decoders: Decoders | None) -> None:
        self._settings, self._pool, self._decoders = settings, pool, decoders
        self._queue: deque[PartEnd | _Group] = deque()
        self._filling: _Group | None = None
        self._num_images = 0
        self._encoded = 0  # bytes
        self._largest = 0  # bytes of an image so far: what those still being decoded are counted as
        self._space = threading.Condition()
        self._held = 0  # bytes of pixels that wait to be taken
        self._next: _Group | None = None  # what is being taken: it must not wait for others
        self._closed = False

    def close(self) -> None:
        """Let go of those that wait to be decoded."""
        with self._space:
            self._closed = True
            self._space.notify_all()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, part: PartInProgress, ref: SampleRef, known: Known) -> None:
        if self._filling is None:
            self._filling = _Group(part, known)
            self._queue.append(self._filling)
        self._filling.refs.append(ref)
        self._num_images += 1
        self._encoded += ref.num_bytes
        if len(self._filling.refs) >= self._group_size() or self.is_full:
            self._submit()

    def end(self, part: PartEnd) -> None:
        self._submit()
        self._queue.append(part)

    @property
    def is_full(self) -> bool:
        return self._num_images > self._room() or self._encoded > MAX_ENCODED_BYTES or len(self._queue) > self._room()

    def take(self) -> Iterator[_Decoded | PartEnd]:
        item = self._queue.popleft()
        if not isinstance(item, _Group):
            yield item
            return
        if item is self._filling:
            self._submit()
        assert item.made is not None
        with self._space:
            self._next = item
            self._space.notify_all()
        with self._settings.trace.span("wait for pixels") if not item.made.done() else nullcontext():
            made = item.made.result()
        for views in made:
            yield item.part, views
        with self._space:
            self._held -= item.num_bytes
            self._space.notify_all()
        self._num_images -= len(item.refs)
        self._encoded -= sum(ref.num_bytes for ref in item.refs)

    def _submit(self) -> None:
        group, self._filling = self._filling, None
        if group is not None:
            group.made = self._pool.submit(self._decode, group)

    def _decode(self, group: _Group) -> list[Made]:
        with self._space:
            self._space.wait_for(lambda: self._held < MAX_FLYING_BYTES or group is self._next or self._closed)
            if self._closed:
                return []
        with self._settings.trace.span("decode"):
            made = self._decoded(group)
        sizes = [sum(_num_bytes(image) for _, image in views) for views in made]
        with self._space:
            group.num_bytes = sum(sizes)
            self._held += group.num_bytes
            self._largest = max(self._largest, *sizes)
        return made

    def _decoded(self, group: _Group) -> list[Made]:
        if self._decoders is not None:
            return self._decoders.decode(group.refs, group.known)
        return [decode_sample(ref, self._settings, group.known) for ref in group.refs]

    def _room(self) -> int:
        """How many images may be in flight."""
        workers = self._settings.workers
        most = (4 if self._decoders is None or not self._largest else 2 * _MOST_AT_ONCE) * workers
        return max(workers, min(most, MAX_FLYING_BYTES // max(1, self._largest)))

    def _group_size(self) -> int:
        """How many go together, so that each worker has one group to do and one that waits."""
        if self._decoders is None or not self._largest:
            return 1
        return max(1, min(_MOST_AT_ONCE, self._room() // (2 * self._settings.workers)))


def _decode_in_order(
    source: Source, parts: Iterable[Part], settings: LoadSettings, ahead: _Ahead
) -> Iterator[_Decoded | PartEnd]:
    """Submit samples ahead, take results in order."""
    for part in parts:
        with settings.trace.span(part.name):
            yield from _decode_part(source, part, settings, ahead)
    while ahead:
        yield from ahead.take()


def _decode_part(source: Source, part: Part, settings: LoadSettings, ahead: _Ahead) -> Iterator[_Decoded | PartEnd]:
    """Submit the samples of a part; what comes out may be those of the part before."""
    progress, known = PartInProgress(part), settings.known(part)
    for ref in _refs(source, part):
        if isinstance(ref, SourceError):
            ahead.end(PartFailed(progress, ref))
            break
        ahead.add(progress, ref, known)
        while ahead.is_full:
            yield from ahead.take()
    else:
        ahead.end(PartLoaded(progress))


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
