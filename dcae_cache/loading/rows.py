"""One sample to its table row and its pixels: read, decode, fit, or say why not. Knows nothing of batches or torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import TRANSIENT, SampleSkipped
from ..images.pixels import load_fitted
from ..images.views import Fitting, View
from ..records import Bucket, Crop, Notes, Part, Pixels, Row, Sample, SampleRef, StoredAt
from ..text import without_infinity
from ..trace import NO_TRACE, Trace
from ..urls import without_secrets

RETRY_PAUSES = (0.5, 2.0, 8.0)  # seconds

T = TypeVar("T")


Stored = tuple[Row, StoredAt]


@dataclass(frozen=True, slots=True)
class Known:
    """Rows and latents that are stored already, those of an image together: by the sha256 of the encoded image, and,
    of samples that are no longer in the source, by key."""

    by_hash: Mapping[str, Sequence[Stored]] = field(default_factory=dict)
    gone: Mapping[str, Sequence[Stored]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How samples become batches. ``batch_size`` maps a bucket to its number of images; ``known`` tells what is stored
    already of a part. ``workers`` images are decoded at once: on threads of this process, or with ``processes`` in as
    many others, where there are enough images to be worth starting them.
    ``trace``: what is written down of it, if anything. ``notify`` hears, on any thread, of processes that can't be
    had."""

    fitting: Fitting
    max_pixels: int
    batch_size: Callable[[Bucket], int]
    workers: int
    known: Callable[[Part], Known] = lambda part: Known()
    processes: bool = False
    trace: Trace = NO_TRACE
    notify: Callable[[str], None] = lambda text: None


Made = Sequence[tuple[Row, NDArray[np.uint8] | StoredAt | None]]  # of one sample, in order


def decode_sample(ref: SampleRef, settings: LoadSettings, known: Known) -> Made:
    """Read and decode one sample, and resize and crop it for each of its views, unless their latents are stored; a
    sample that can't be used becomes one skipped row without pixels."""
    if ref.key in known.gone:
        return known.gone[ref.key]
    sample: Sample | None = None
    fitting = settings.fitting
    try:
        sample = load_sample(ref)
        if known.by_hash:
            stored = _stored_views(known.by_hash.get(hashlib.sha256(sample.data).hexdigest(), ()), ref.key, fitting)
            if stored:
                now = {**_named(sample), **described(sample)}
                return [
                    (replace(row, row=None, **now, **_viewed(ref.key, view, fitting)), at)
                    for view, (row, at) in stored
                ]
        pictures = load_fitted(sample.data, ref.key, fitting, settings.max_pixels)
    except SampleSkipped as skip:
        return [(skipped_row(ref, sample, skip, fitting), None)]
    except OSError as error:
        return [(skipped_row(ref, sample, SampleSkipped("unreadable", str(error)), fitting), None)]
    return decoded_rows(ref.key, pictures, {**_named(sample), **described(sample)}, fitting)


def decoded_rows(key: str, pictures: Sequence[tuple[View, Pixels]], said: Mapping[str, Any], fitting: Fitting) -> Made:
    """The rows of an image whose pixels were had, with them. ``said``: the columns that don't come from them."""
    return [
        (
            Row(
                status="ok",
                height=pixels.height,
                width=pixels.width,
                **_placed(view.bucket, view.crop),
                **_viewed(key, view, fitting),
                **said,
            ),
            pixels.data,
        )
        for view, pixels in pictures
    ]


def num_left_out(row: Row, fitting: Fitting) -> int:
    """How many views the image of a row doesn't have, being too small for them; 0 where its size isn't known."""
    if fitting.is_plain or row.height is None or row.width is None:
        return 0
    return fitting.num_views - len(fitting.views_of(row.image_key, row.height, row.width))


def _stored_views(stored: Sequence[Stored], key: str, fitting: Fitting) -> list[tuple[View, Stored]]:
    """The stored rows of an image with the views that it has under this key; empty where they aren't the same ones:
    another key has other random crops, and what the model could not encode isn't stored."""
    if not stored or stored[0][0].height is None or stored[0][0].width is None:
        return []
    views = fitting.views_of(key, stored[0][0].height, stored[0][0].width)
    places = [{name: getattr(row, name) for name in _placed(Bucket(0, 0), Crop(0, 0, 0, 0))} for row, _ in stored]
    same = places == [_placed(view.bucket, view.crop) for view in views]
    return list(zip(views, stored, strict=True)) if same else []


def _named(sample: Sample) -> dict[str, Any]:
    return {"source": without_secrets(sample.source), "shard": sample.shard}


def _placed(bucket: Bucket, crop: Crop) -> dict[str, Any]:
    """The columns that say where in the image a view lies."""
    return {
        "bucket_height": bucket.height,
        "bucket_width": bucket.width,
        "resized_height": crop.resized_height,
        "resized_width": crop.resized_width,
        "crop_top": crop.top,
        "crop_left": crop.left,
    }


def _viewed(key: str, view: View, fitting: Fitting) -> dict[str, Any]:
    """The columns that tell the rows of an image apart."""
    if fitting.is_plain:
        return {"key": key}
    return {"key": fitting.key_of(key, view), "image": key, "resolution": view.resolution, "crop": view.number}


def load_sample(ref: SampleRef) -> Sample:
    """Read a sample, again after a pause where a network file system fails for the moment."""
    return patiently(ref.load)


def patiently(read: Callable[[], T]) -> T:
    """What ``read`` gives; it is tried again after a pause where a network file system fails for the moment."""
    for pause in RETRY_PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(pause)
    return read()


def skipped_row(ref: SampleRef, sample: Sample | None, skip: SampleSkipped, fitting: Fitting) -> Row:
    """The row of a sample that can't be used, with whatever is known of it."""
    said = {"shard": sample.shard, **described(sample)} if sample else {}
    return refused_row(ref, said, skip, fitting)


def refused_row(ref: SampleRef, said: Mapping[str, Any], skip: SampleSkipped, fitting: Fitting) -> Row:
    """The same, where what is known of the sample stands in the columns ``said``."""
    return Row(
        key=fitting.key_of_skipped(ref.key),
        image=None if fitting.is_plain else ref.key,
        status="skipped",
        reason=skip.reason,
        detail=_as_utf8(skip.detail),
        source=without_secrets(ref.source),
        **said,
    )


def described(sample: Sample) -> dict[str, Any]:
    """The columns that come from the sample itself, not from what was made of it."""
    return said_of(sample, len(sample.data), hashlib.sha256(sample.data).hexdigest())


def said_of(notes: Notes | Sample, num_bytes: int, sha256: str) -> dict[str, Any]:
    """The same of an image of so many bytes with that hash."""
    return {**noted(notes), "source_bytes": num_bytes, "source_hash": sha256}


def noted(notes: Notes | Sample) -> dict[str, Any]:
    """The columns that say what is known of an image besides its pixels."""
    return {
        "caption": _as_utf8(notes.caption),
        "label": _as_utf8(notes.label),
        "attributes": _as_utf8(_as_json(notes.attributes)),
    }


def _as_json(attributes: Mapping[str, Any]) -> str | None:
    if not attributes:
        return None
    try:
        text = json.dumps(attributes, ensure_ascii=False, sort_keys=True, default=str, allow_nan=False)
    except ValueError:  # Python reads and writes NaN and Infinity, which JSON hasn't got
        text = json.dumps(without_infinity(attributes), ensure_ascii=False, sort_keys=True, default=str)
    except RecursionError:
        raise SampleSkipped("bad_json", "its attributes are nested too deep") from None
    return without_secrets(text)  # of other addresses of the image, say


def _as_utf8(text: str | None) -> str | None:
    """JSON can spell half a surrogate pair, which no UTF-8 file can hold."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
