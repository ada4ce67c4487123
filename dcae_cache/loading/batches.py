"""From the parts of a source to batches of pixels, on threads, in source order, with bounded memory.

Decoding and resizing run on a thread pool (Pillow lets go of the interpreter lock for both). Knows nothing of torch,
models or files on disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import TRANSIENT, SampleSkipped, SourceError
from ..images.buckets import BucketRule
from ..images.pixels import load_pixels
from ..records import Bucket, Part, Row, Sample, SampleRef, StoredAt
from ..sources import Source

T = TypeVar("T")
RETRY_PAUSES = (0.5, 2.0, 8.0)  # seconds
MAX_WAITING_BYTES = 2**29  # of pixels in batches that aren't full yet


@dataclass(slots=True)
class PartInProgress:
    """A part whose samples are on their way. ``rows`` grows in source order; a row's index is its slot."""

    part: Part
    rows: list[Row] = field(default_factory=list)


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


@dataclass(frozen=True, slots=True)
class Known:
    """Rows and latents that are stored already: by the sha256 of the encoded image, and, of samples that are no longer
    in the source, by key."""

    by_hash: Mapping[str, tuple[Row, StoredAt]] = field(default_factory=dict)
    gone: Mapping[str, tuple[Row, StoredAt]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How samples become batches. ``batch_size`` maps a bucket to its number of images; ``known`` tells what is stored
    already of a part."""

    rule: BucketRule
    max_pixels: int
    batch_size: Callable[[Bucket], int]
    workers: int
    known: Callable[[Part], Known] = lambda part: Known()


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
                part, row, image = item
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


def _num_bytes(image: NDArray[np.uint8] | StoredAt) -> int:
    return 0 if isinstance(image, StoredAt) else image.nbytes


_Made = tuple[Row, NDArray[np.uint8] | StoredAt | None]
_Decoded = tuple[PartInProgress, Row, NDArray[np.uint8] | StoredAt | None]


def _decode_in_order(
    source: Source, parts: Iterable[Part], settings: LoadSettings, pool: ThreadPoolExecutor
) -> Iterator[_Decoded | PartEnd]:
    """Submit samples ahead, take results in order. At most ``window`` images are in flight, across part boundaries."""
    window = 4 * settings.workers
    in_flight: deque[PartEnd | tuple[PartInProgress, Future[_Made]]] = deque()

    def take() -> _Decoded | PartEnd:
        item = in_flight.popleft()
        return (item[0], *item[1].result()) if isinstance(item, tuple) else item

    for part in parts:
        progress, known = PartInProgress(part), settings.known(part)
        for ref in _refs(source, part):
            if isinstance(ref, SourceError):
                in_flight.append(PartFailed(progress, ref))
                break
            in_flight.append((progress, pool.submit(decode_sample, ref, settings, known)))
            while len(in_flight) > window:
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


def decode_sample(ref: SampleRef, settings: LoadSettings, known: Known) -> _Made:
    """Read, decode, resize and crop one sample, unless its latent is stored; a sample that can't be used becomes a
    skipped row without pixels."""
    if ref.key in known.gone:
        return known.gone[ref.key]
    sample: Sample | None = None
    try:
        sample = load_sample(ref)
        if known.by_hash:
            stored = known.by_hash.get(hashlib.sha256(sample.data).hexdigest())
            if stored is not None:
                notes = {"key": sample.key, "source": sample.source, "shard": sample.shard, **described(sample)}
                return replace(stored[0], row=None, **notes), stored[1]
        pixels = load_pixels(sample.data, settings.rule, settings.max_pixels)
    except SampleSkipped as skip:
        return skipped_row(ref, sample, skip), None
    except OSError as error:
        return skipped_row(ref, sample, SampleSkipped("unreadable", str(error))), None
    row = Row(
        key=sample.key,
        status="ok",
        bucket_height=pixels.bucket.height,
        bucket_width=pixels.bucket.width,
        height=pixels.height,
        width=pixels.width,
        resized_height=pixels.crop.resized_height,
        resized_width=pixels.crop.resized_width,
        crop_top=pixels.crop.top,
        crop_left=pixels.crop.left,
        source=sample.source,
        shard=sample.shard,
        **described(sample),
    )
    return row, pixels.data


def load_sample(ref: SampleRef) -> Sample:
    """Read a sample, again after a pause where a network file system fails for the moment."""
    for pause in RETRY_PAUSES:
        try:
            return ref.load()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(pause)
    return ref.load()


def skipped_row(ref: SampleRef, sample: Sample | None, skip: SampleSkipped) -> Row:
    """The row of a sample that can't be used, with whatever is known of it."""
    known = described(sample) if sample else {}
    shard = sample.shard if sample else None
    return Row(
        key=ref.key,
        status="skipped",
        reason=skip.reason,
        detail=_as_utf8(skip.detail),
        source=ref.source,
        shard=shard,
        **known,
    )


def described(sample: Sample) -> dict[str, Any]:
    """The columns that come from the sample itself, not from what was made of it."""
    return {
        "caption": _as_utf8(sample.caption),
        "label": _as_utf8(sample.label),
        "attributes": _as_utf8(_as_json(sample.attributes)),
        "source_bytes": len(sample.data),
        "source_hash": hashlib.sha256(sample.data).hexdigest(),
    }


def _as_json(attributes: Mapping[str, Any]) -> str | None:
    if not attributes:
        return None
    try:
        return json.dumps(attributes, ensure_ascii=False, sort_keys=True, default=str, allow_nan=False)
    except ValueError:  # Python reads and writes NaN and Infinity, which JSON hasn't got
        return json.dumps(_without_nan(attributes), ensure_ascii=False, sort_keys=True, default=str)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value


def _as_utf8(text: str | None) -> str | None:
    """JSON can spell half a surrogate pair, which no UTF-8 file can hold."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def default_workers() -> int:
    """Decoding threads when the user names no number: one per core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Prefetch(Generic[T]):
    """Runs a generator on a thread of its own, at most ``depth`` items ahead. Iterate it, then close it.

    An exception of the generator is raised to whoever iterates. ``close`` stops the generator at its next item and
    waits for it to clean up.
    """

    def __init__(self, items: Generator[T], depth: int) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._queue.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self, items: Generator[T]) -> None:
        end: BaseException | None = None
        try:
            for item in items:
                self._put((item, None))
                if self._stop.is_set():
                    break
        except BaseException as error:  # handed to the thread that iterates
            end = error
        finally:
            items.close()
        self._put((None, end))

    def _put(self, entry: tuple[T | None, BaseException | None]) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
