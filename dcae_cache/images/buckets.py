"""Which bucket an image goes to and how it is cropped for it, from its height and width alone.

    rule = BucketRule(kind="area", resolution=512, factor=32)
    bucket, crop = bucket_for(1365, 2048, rule)     # 384x640, of the image resized to 427x640

Pure functions of integers: the same in a dry run, in the encoder and on any machine, whatever came before. Comparisons
are cross-multiplied integers, never floats. This module knows nothing of pixels, files or tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args

from dcae_cache.errors import SampleSkipped, UsageError
from dcae_cache.records import Bucket, Crop

from .bucket_tables import TABLES, nearest_in_table
from .crops import adm_crop, covering_crop, native_crop

BucketKind = Literal[
    "area",
    "square",
    "list",
    "sana-256",
    "sana-512",
    "sana-1024",
    "sana-2048",
    "sana-2880",
    "sana-4096",
    "prx-512",
    "prx-1024",
    "kohya",
    "native",
]
CropKind = Literal["center", "adm"]
WITH_RESOLUTION = ("area", "square", "kohya")  # the others have sizes of their own

AUTOMATIC = 0  # as a step: by the factor and the resolution
FIRST_STEP = 64  # that of area buckets before image rules 2, whatever the resolution; and kohya's own


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketRule:
    """How images are fitted to sizes the autoencoder takes. Raises UsageError for a rule that can't be followed.

    ``factor`` is the autoencoder's spatial compression ratio; every side of every bucket divides by it.
    ``resolution`` (pixels) is the side of the square with the area aimed at; tables, list and native ignore it.
    ``buckets`` are the sizes of ``list``.
    ``crop="adm"`` is the ADM (guided-diffusion) resize and centre crop, with ``square`` only.
    ``max_aspect`` bounds the long side over the short one of an area bucket.
    ``max_upscale`` bounds how many times an image may be enlarged; None: without limit.
    ``step`` is what the sides of area buckets are multiples of (rounded up to one of the factor), AUTOMATIC a 16th of
    the resolution, but no more than 64 and no less than the factor. For kohya ``step``, ``min_side`` and ``max_side``
    are its bucket_reso_steps, min_bucket_reso and max_bucket_reso.
    """

    kind: BucketKind
    resolution: int = 512
    factor: int = 32
    crop: CropKind = "center"
    max_aspect: float = 4.0
    max_upscale: float | None = None
    step: int = AUTOMATIC
    min_side: int = 256
    max_side: int = 1024
    buckets: tuple[Bucket, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(BucketKind):
            raise UsageError(f"There is no bucket rule {self.kind!r}; there are {', '.join(get_args(BucketKind))}.")
        if self.crop not in get_args(CropKind):
            raise UsageError(f"There is no crop {self.crop!r}; there are {', '.join(get_args(CropKind))}.")
        if self.crop == "adm" and self.kind != "square":
            raise UsageError(f"The ADM crop gives squares: use it with bucket 'square', not {self.kind!r}.")
        if self.factor < 1:
            raise UsageError(f"The factor is the autoencoder's, at least 1; {self.factor} was given.")
        if not self.max_aspect >= 1:
            raise UsageError(f"max_aspect is long side over short side, at least 1; {self.max_aspect} was given.")
        if self.max_upscale is not None and not self.max_upscale >= 1:
            raise UsageError(f"max_upscale is at least 1 (no enlarging); {self.max_upscale} was given.")
        if self.step == AUTOMATIC:
            object.__setattr__(self, "step", _automatic_step(self))
        _check_sides(self)


def buckets_of(rule: BucketRule) -> tuple[Bucket, ...]:
    """Every bucket the rule can give, sorted by height, then width; empty for ``native``, which has no fixed set.

    ``area``: all pairs of sides that are multiples of the step with an aspect ratio up to max_aspect and an area
    within step / (2 resolution) of resolution^2: 3.1 % if the step is a 16th of it. The square of that resolution is
    always among them.
    """
    return _buckets_of(rule)


def bucket_for(height: int, width: int, rule: BucketRule) -> tuple[Bucket, Crop]:
    """The bucket of an upright image of height x width pixels, and how it is resized and cropped for it.

    Raises SampleSkipped "too_small" (no pixels, or a side below the factor under ``native``) and "upscale_limit".
    """
    if min(height, width) < 1:
        raise SampleSkipped("too_small", f"the image is {height}x{width} pixels")
    if rule.kind == "native":
        return native_crop(height, width, rule.factor)
    bucket = _nearest(height, width, rule)
    if rule.max_upscale is not None:
        enlarged = max(Fraction(bucket.height, height), Fraction(bucket.width, width))
        if enlarged > rule.max_upscale:
            raise SampleSkipped(
                "upscale_limit",
                f"{height}x{width} pixels would be enlarged {float(enlarged):.2f} times to fill {bucket}, "
                f"more than max_upscale {rule.max_upscale:g}",
            )
    if rule.crop == "adm":
        return bucket, adm_crop(height, width, bucket.height)
    return bucket, covering_crop(height, width, bucket)


def parse_bucket(text: str) -> Bucket:
    """The bucket written as HEIGHTxWIDTH. Raises UsageError."""
    height, cross, width = text.strip().lower().partition("x")
    if not (cross and all(side.isascii() and side.isdigit() and int(side) > 0 for side in (height, width))):
        raise UsageError(f"A bucket is written HEIGHTxWIDTH in pixels, such as 512x288, not {text!r}.")
    return Bucket(int(height), int(width))


# --- the sets ------------------------------------------------------------------------------------------------------


def _automatic_step(rule: BucketRule) -> int:
    if rule.kind != "area":
        return FIRST_STEP
    return max(rule.factor, min(FIRST_STEP, rule.resolution // 16) // rule.factor * rule.factor)


def _check_sides(rule: BucketRule) -> None:
    kind, factor = rule.kind, rule.factor
    if rule.step < 1:
        raise UsageError(f"`bucket_step` is at least 1; {rule.step} was given.")
    if kind in ("area", "square") and (rule.resolution < 1 or rule.resolution % factor):
        below = max(rule.resolution // factor * factor, 0)
        raise UsageError(
            f"Resolution {rule.resolution} does not divide by the autoencoder's factor {factor}; "
            f"use {f'{below} or ' if below else ''}{below + factor}."
        )
    if kind == "list":
        _check_list(rule)
    if kind in TABLES:
        _check_table(kind, factor)
    if kind == "kohya":
        _check_kohya(rule)


def _check_list(rule: BucketRule) -> None:
    if not rule.buckets:
        raise UsageError("The bucket rule 'list' needs `buckets`, such as 512x512,512x288,288x512.")
    for bucket in rule.buckets:
        if bucket.height % rule.factor or bucket.width % rule.factor:
            near = [max(round(side / rule.factor), 1) * rule.factor for side in (bucket.height, bucket.width)]
            raise UsageError(
                f"Both sides of a bucket must divide by the autoencoder's factor {rule.factor}, and those of {bucket} "
                f"don't; {near[0]}x{near[1]} is near it."
            )


def _check_table(kind: str, factor: int) -> None:
    bad = sorted({side for b in TABLES[kind] for side in (b.height, b.width) if side % factor})
    if bad:
        raise UsageError(
            f"The {kind} table has sides that the autoencoder's factor {factor} does not divide "
            f"({', '.join(map(str, bad[:3]))}{', ...' if len(bad) > 3 else ''}). Use bucket 'area' instead, "
            f"or an autoencoder with a smaller factor."
        )


def _check_kohya(rule: BucketRule) -> None:
    for name, value in (("step", rule.step), ("min_side", rule.min_side), ("max_side", rule.max_side)):
        if value < 1 or value % rule.factor:
            raise UsageError(f"kohya's {name} must be a multiple of the factor {rule.factor}; {value} was given.")
    if rule.min_side > rule.max_side or rule.resolution < rule.step:
        raise UsageError(
            f"kohya needs min_side <= max_side and step <= resolution; min_side {rule.min_side}, max_side "
            f"{rule.max_side}, step {rule.step} and resolution {rule.resolution} were given."
        )


@lru_cache(maxsize=64)
def _buckets_of(rule: BucketRule) -> tuple[Bucket, ...]:
    if rule.kind == "native":
        return ()
    if rule.kind == "square":
        return (Bucket(rule.resolution, rule.resolution),)
    if rule.kind == "list":
        return tuple(sorted(set(rule.buckets)))
    if rule.kind in TABLES:
        return tuple(sorted(TABLES[rule.kind]))
    pairs = _area_pairs(rule) if rule.kind == "area" else _kohya_pairs(rule)
    return tuple(sorted({Bucket(*pair) for a, b in pairs for pair in ((a, b), (b, a))}))


def _area_pairs(rule: BucketRule) -> Iterable[tuple[int, int]]:
    """(short, long) sides. For each short side the nearest long one is always inside the tolerance."""
    step = -(-rule.step // rule.factor) * rule.factor
    yield rule.resolution, rule.resolution
    for short in range(step, rule.resolution + 1, step):
        for long in range(short, int(rule.max_aspect * short) + 1, step):
            if 2 * abs(short * long - rule.resolution**2) <= step * rule.resolution:
                yield short, long


def _kohya_pairs(rule: BucketRule) -> Iterable[tuple[int, int]]:
    """As sd-scripts' make_bucket_resolutions; the caller adds the transposed ones, as it does."""
    square = rule.resolution // rule.step * rule.step
    yield square, square
    for width in range(rule.min_side, rule.max_side + 1, rule.step):
        height = min(rule.max_side, rule.resolution**2 // width // rule.step * rule.step)
        if height >= rule.min_side:
            yield height, width


# --- choosing ------------------------------------------------------------------------------------------------------


def _nearest(height: int, width: int, rule: BucketRule) -> Bucket:
    buckets = _buckets_of(rule)
    if rule.kind in ("area", "list"):
        return _nearest_log_aspect(height, width, buckets)
    if rule.kind == "kohya":
        exact = Bucket(height, width)
        if exact in buckets:
            return exact
        # By |aspect - w/h|, times h; the first by (width, height) when equal, as sd-scripts has them sorted.
        return min(
            buckets,
            key=lambda b: (Fraction(abs(b.width * height - width * b.height), b.height), b.width, b.height),
        )
    if rule.kind in TABLES:
        return nearest_in_table(height, width, rule.kind)
    return buckets[0]


def _nearest_log_aspect(height: int, width: int, buckets: tuple[Bucket, ...]) -> Bucket:
    """Nearest in log aspect ratio; then the larger overlap of the image and the bucket laid on one another; then the
    squarer one. Transposing the image transposes the answer."""

    def apart(bucket: Bucket) -> tuple[int, int]:
        a, b = height * bucket.width, width * bucket.height
        return max(a, b), min(a, b)  # their quotient is exp of the distance

    def preference(bucket: Bucket) -> tuple[int, int]:
        overlap = min(height, bucket.height) * min(width, bucket.width)
        return overlap, -abs(bucket.height - bucket.width)

    best = buckets[0]
    far, near = apart(best)
    for bucket in buckets[1:]:
        a, b = apart(bucket)
        if a * near < far * b or (a * near == far * b and preference(bucket) > preference(best)):
            best, far, near = bucket, a, b
    return best
