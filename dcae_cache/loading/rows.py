"""One sample to its table row and its pixels: read, decode, fit, or say why not. Knows nothing of batches or torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import TRANSIENT, SampleSkipped
from ..images.buckets import BucketRule
from ..images.pixels import load_pixels
from ..records import Bucket, Notes, Part, Pixels, Row, Sample, SampleRef, StoredAt
from ..text import without_infinity
from ..trace import NO_TRACE, Trace
from ..urls import without_secrets

RETRY_PAUSES = (0.5, 2.0, 8.0)  # seconds

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known:
    """Rows and latents that are stored already: by the sha256 of the encoded image, and, of samples that are no longer
    in the source, by key."""

    by_hash: Mapping[str, tuple[Row, StoredAt]] = field(default_factory=dict)
    gone: Mapping[str, tuple[Row, StoredAt]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How samples become batches. ``batch_size`` maps a bucket to its number of images; ``known`` tells what is stored
    already of a part. ``workers`` images are decoded at once: on threads of this process, or with ``processes`` in as
    many others, where there are enough images to be worth starting them. ``trace``: what is written down of it, if
    anything. ``notify`` hears, on any thread, of
    processes that can't be had."""

    rule: BucketRule
    max_pixels: int
    batch_size: Callable[[Bucket], int]
    workers: int
    known: Callable[[Part], Known] = lambda part: Known()
    processes: bool = False
    trace: Trace = NO_TRACE
    notify: Callable[[str], None] = lambda text: None


Made = tuple[Row, NDArray[np.uint8] | StoredAt | None]


def decode_sample(ref: SampleRef, settings: LoadSettings, known: Known) -> Made:
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
                place = without_secrets(sample.source)
                notes = {"key": sample.key, "source": place, "shard": sample.shard, **described(sample)}
                return replace(stored[0], row=None, **notes), stored[1]
        pixels = load_pixels(sample.data, settings.rule, settings.max_pixels)
    except SampleSkipped as skip:
        return skipped_row(ref, sample, skip), None
    except OSError as error:
        return skipped_row(ref, sample, SampleSkipped("unreadable", str(error))), None
    return decoded_row(sample.key, sample.source, sample.shard, described(sample), pixels), pixels.data


def decoded_row(key: str, source: str, shard: str | None, said: Mapping[str, Any], pixels: Pixels) -> Row:
    """The row of a sample whose pixels were had. ``said``: the columns that come from the sample itself."""
    return Row(
        key=key,
        status="ok",
        bucket_height=pixels.bucket.height,
        bucket_width=pixels.bucket.width,
        height=pixels.height,
        width=pixels.width,
        resized_height=pixels.crop.resized_height,
        resized_width=pixels.crop.resized_width,
        crop_top=pixels.crop.top,
        crop_left=pixels.crop.left,
        source=without_secrets(source),
        shard=shard,
        **said,
    )


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


def skipped_row(ref: SampleRef, sample: Sample | None, skip: SampleSkipped) -> Row:
    """The row of a sample that can't be used, with whatever is known of it."""
    said = described(sample) if sample else {}
    return refused_row(ref, sample.shard if sample else None, said, skip)


def refused_row(ref: SampleRef, shard: str | None, said: Mapping[str, Any], skip: SampleSkipped) -> Row:
    """The same, where what is known of the sample stands in the columns ``said``."""
    return Row(
        key=ref.key,
        status="skipped",
        reason=skip.reason,
        detail=_as_utf8(skip.detail),
        source=without_secrets(ref.source),
        shard=shard,
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
