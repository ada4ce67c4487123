"""Decoding in processes of their own, so that it doesn't hold the interpreter lock of this one.

There are as many processes as threads that wait for them. Each is told the paths of a few images at a time, or given
their bytes, and gives the same pixels as a thread would. Knows nothing of parts or batches.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..errors import SampleSkipped, WorkerError, one_line
from ..images.views import Fitting
from ..records import ImageFile, Notes, Pixels, Row, Sample, SampleRef
from ..urls import without_secrets
from .decoder import Decoder, DecoderLostError
from .decoder_process import Fitted
from .rows import (
    Known,
    LoadSettings,
    Made,
    decode_sample,
    decoded_rows,
    load_sample,
    patiently,
    refused_row,
    said_of,
    skipped_row,
)
from .shared_pixels import is_available

_WORTH_STARTING = 16  # images for each process that were decoded here first: a small run starts none


def decoders_are_available() -> bool:
    """Whether this system has what decoding processes need: memory without a name, and a program to start."""
    return is_available() and bool(sys.executable)


@dataclass(slots=True)
class _Place:
    """One of the places where images are decoded: in a process, as soon as it has one."""

    decoder: Decoder | None = None


class Decoders:
    """The decoding processes of one run. ``decode`` may be called on ``settings.workers`` threads at once; leave the
    ``with`` block when none does any more. The first images are decoded on the calling threads: a small run starts no
    process, and a larger one doesn't wait while they start. So are all, where processes can't be had."""

    def __init__(self, settings: LoadSettings) -> None:
        self._settings = settings
        self._places: queue.LifoQueue[_Place] = queue.LifoQueue()
        for _ in range(settings.workers):
            self._places.put(_Place())
        self._lock = threading.Lock()
        self._seen = 0
        self._given_up = False

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in range(self._settings.workers):
            decoder = self._places.get().decoder
            if decoder is not None:
                decoder.close()

    def decode(self, refs: Sequence[SampleRef], known: Known) -> list[Made]:
        """``decode_sample`` of each. Raises WorkerError for an image that ends the process it is decoded in, twice."""
        place = self._places.get()
        try:
            # Of a part of which much is stored most images are not decoded at all.
            decoder = None if known.by_hash or known.gone else self._decoder(place, len(refs))
            if decoder is None:
                return [decode_sample(ref, self._settings, known) for ref in refs]
            found = [_found(ref, self._settings.fitting) for ref in refs]
            try:
                return _ask(decoder, refs, found, self._settings.fitting)
            except DecoderLostError:  # each by itself now: that way the right one is blamed
                return [self._decode_alone(place, ref, item) for ref, item in zip(refs, found, strict=True)]
        finally:
            self._places.put(place)

    def _decoder(self, place: _Place, count: int) -> Decoder | None:
        """That of the place, if it is ready; started if it is worth that now that ``count`` more images have come."""
        with self._lock:
            self._seen += count
            worth = self._seen > _WORTH_STARTING * self._settings.workers and not self._given_up
        try:
            if place.decoder is None and worth:
                place.decoder = self._start()
            if place.decoder is not None and place.decoder.wait_until_ready(0):
                return place.decoder
        except (DecoderLostError, OSError) as error:
            self._give_up(one_line(error))
            if place.decoder is not None:
                place.decoder.close()
                place.decoder = None
        return None

    def _start(self) -> Decoder:
        return Decoder(self._settings.fitting, self._settings.max_pixels)

    def _give_up(self, why: str) -> None:
        with self._lock:
            told, self._given_up = self._given_up, True
        if not told:
            self._settings.notify(f"No process could be started for decoding ({why}): threads decode instead.")

    def _decode_alone(self, place: _Place, ref: SampleRef, item: _Found) -> Made:
        try:
            if place.decoder is None or not place.decoder.is_alive:
                if place.decoder is not None:
                    place.decoder.close()
                    place.decoder = None
                place.decoder = self._start()
            return _ask(place.decoder, [ref], [item], self._settings.fitting)[0]
        except (DecoderLostError, OSError) as error:
            raise WorkerError(
                f"The process that decodes {ref.source} ended twice ({one_line(error)}). If memory ran out, choose "
                "fewer `workers`; else take this image out of the source. Finished parts are kept: run the same "
                "command again to go on."
            ) from error


_Found = ImageFile | Sample | Row  # a file to be read, a sample that was read here, or the row of one that wasn't


def _found(ref: SampleRef, fitting: Fitting) -> _Found:
    if ref.file is not None:
        return ref.file
    try:
        return load_sample(ref)
    except (SampleSkipped, OSError) as error:
        return skipped_row(ref, None, _as_skip(error), fitting)


def _ask(decoder: Decoder, refs: Sequence[SampleRef], found: Sequence[_Found], fitting: Fitting) -> list[Made]:
    images = [
        (ref.key, item.data if isinstance(item, Sample) else item)
        for ref, item in zip(refs, found, strict=True)
        if not isinstance(item, Row)
    ]
    answers = iter(decoder.decode(images))
    return [
        [(item, None)] if isinstance(item, Row) else _made(ref, item, next(answers), fitting)
        for ref, item in zip(refs, found, strict=True)
    ]


def _made(
    ref: SampleRef, item: ImageFile | Sample, answer: tuple[Fitted, list[NDArray[np.uint8]]], fitting: Fitting
) -> Made:
    """The rows, and the pixels, from what the process says."""
    fitted, pictures = answer
    skip = SampleSkipped(*fitted.skip) if fitted.skip else None
    if fitted.num_bytes is None:
        assert skip is not None
        return [(skipped_row(ref, None, skip, fitting), None)]
    notes: Notes | Sample
    if isinstance(item, Sample):
        notes, source, shard = item, item.source, item.shard
    else:
        source, shard = ref.source, None
        try:
            notes = patiently(ref.notes)
        except (SampleSkipped, OSError) as error:  # as where both are read at once
            return [(skipped_row(ref, None, _as_skip(error), fitting), None)]
    said = {"shard": shard, **said_of(notes, fitted.num_bytes, fitted.sha256)}
    if skip is not None:
        return [(refused_row(ref, said, skip, fitting), None)]
    views = [picture.view for picture in fitted.pictures]
    fits = [
        (view, Pixels(pixels, *fitted.original, view.bucket, view.crop))
        for view, pixels in zip(views, pictures, strict=True)
    ]
    return decoded_rows(ref.key, fits, {"source": without_secrets(source), **said}, fitting)


def _as_skip(error: SampleSkipped | OSError) -> SampleSkipped:
    return error if isinstance(error, SampleSkipped) else SampleSkipped("unreadable", str(error))
