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

BucketKind = Literal["area", "square", "sana-512", "sana-1024", "sana-2048", "kohya", "native"]
CropKind = Literal["center", "adm"]

# Published (height, width) tables of Sana and DC-Gen. The 2048 one is the 1024 one doubled.
_SANA_512 = ((256, 1024), (256, 960), (320, 768), (384, 640), (448, 576), (512, 512), (576, 448), (640, 384),
             (768, 320), (960, 256), (1024, 256))  # fmt: skip
_SANA_1024 = (
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600),
    (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152),
    (896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024), (1024, 960), (1088, 960), (1088, 896),
    (1152, 896), (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1408, 704), (1472, 704), (1536, 640),
    (1600, 640), (1664, 576), (1728, 576), (1792, 576), (1856, 512), (1920, 512), (1984, 512), (2048, 512),
)  # fmt: skip
_SANA = {
    "sana-512": tuple(Bucket(*sides) for sides in _SANA_512),
    "sana-1024": tuple(Bucket(*sides) for sides in _SANA_1024),
    "sana-2048": tuple(Bucket(2 * height, 2 * width) for height, width in _SANA_1024),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketRule:
    """How images are fitted to sizes the autoencoder takes. Raises UsageError for a rule that can't be followed.

    ``factor`` is the autoencoder's spatial compression ratio; every side of every bucket divides by it.
    ``resolution`` (pixels) is the side of the square with the area aimed at; the sana tables and native ignore it.
    ``crop="adm"`` is the ADM (guided-diffusion) resize and centre crop, with ``square`` only.
    ``max_aspect`` bounds the long side over the short one of an area bucket.
    ``max_upscale`` bounds how many times an image may be enlarged; None: without limit.
    ``step``, ``min_side`` and ``max_side`` are kohya's bucket_reso_steps, min_bucket_reso and max_bucket_reso.
    """

    kind: BucketKind
    resolution: int = 512
    factor: int = 32
    crop: CropKind = "center"
    max_aspect: float = 4.0
    max_upscale: float | None = None
    step: int = 64
    min_side: int = 256
    max_side: int = 1024

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
        _check_sides(self)


def buckets_of(rule: BucketRule) -> tuple[Bucket, ...]:
    """Every bucket the rule can give, sorted by height, then width; empty for ``native``, which has no fixed set.

    ``area``: all pairs of sides that are multiples of 64 (of the factor, where that is larger) with an aspect ratio up
    to max_aspect and an area within step / (2 resolution) of resolution^2: 6.25 % at 512, 3.1 % at 1024. The square
    of that resolution is always among them.
    """
    return _buckets_of(rule)


def bucket_for(height: int, width: int, rule: BucketRule) -> tuple[Bucket, Crop]:
    """The bucket of an upright image of height x width pixels, and how it is resized and cropped for it.

    Raises SampleSkipped "too_small" (no pixels, or a side below the factor under ``native``) and "upscale_limit".
    """
    if min(height, width) < 1:
        raise SampleSkipped("too_small", f"the image is {height}x{width} pixels")
    if rule.kind == "native":
        return _native(height, width, rule.factor)
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
        return bucket, _adm(height, width, bucket.height)
    return bucket, _cover(height, width, bucket)


# --- the sets ------------------------------------------------------------------------------------------------------


def _check_sides(rule: BucketRule) -> None:
    kind, factor = rule.kind, rule.factor
    if kind in ("area", "square") and (rule.resolution < 1 or rule.resolution % factor):
        below = max(rule.resolution // factor * factor, 0)
        raise UsageError(
            f"Resolution {rule.resolution} does not divide by the autoencoder's factor {factor}; "
            f"use {f'{below} or ' if below else ''}{below + factor}."
        )
    if kind in _SANA:
        bad = sorted({side for b in _SANA[kind] for side in (b.height, b.width) if side % factor})
        if bad:
            raise UsageError(
                f"The {kind} table has sides that the autoencoder's factor {factor} does not divide "
                f"({', '.join(map(str, bad[:3]))}{', ...' if len(bad) > 3 else ''}). Use bucket 'area' instead, "
                f"or an autoencoder with a smaller factor."
            )
    if kind == "kohya":
        for name, value in (("step", rule.step), ("min_side", rule.min_side), ("max_side", rule.max_side)):
            if value < 1 or value % factor:
                raise UsageError(f"kohya's {name} must be a multiple of the factor {factor}; {value} was given.")
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
    if rule.kind in _SANA:
        return tuple(sorted(_SANA[rule.kind]))
    pairs = _area_pairs(rule) if rule.kind == "area" else _kohya_pairs(rule)
    return tuple(sorted({Bucket(*pair) for a, b in pairs for pair in ((a, b), (b, a))}))


def _area_pairs(rule: BucketRule) -> Iterable[tuple[int, int]]:
    """(short, long) sides. For each short side the nearest long one is always inside the tolerance."""
    step = -(-64 // rule.factor) * rule.factor  # max(64, factor) for the factors in use; a multiple of any
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
    if rule.kind == "area":
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
    if rule.kind in _SANA:
        # By |h/w - key|, times 100 w; the smaller key when equal.
        return min(_sana_keys(rule.kind), key=lambda item: (abs(100 * height - item[0] * width), item[0]))[1]
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


@lru_cache(maxsize=3)
def _sana_keys(kind: str) -> tuple[tuple[int, Bucket], ...]:
    """(100 key, bucket); the published key is h/w rounded to two decimals."""
    # round() of a Fraction goes to even: 1856/512 = 3.625 is published as 3.62, 1984/512 = 3.875 as 3.88.
    return tuple((round(Fraction(100 * b.height, b.width)), b) for b in _SANA[kind])


# --- cropping ------------------------------------------------------------------------------------------------------


def _cover(height: int, width: int, bucket: Bucket) -> Crop:
    """The smallest resize that keeps the aspect ratio and fills the bucket, and the window at its centre."""
    if bucket.height * width >= bucket.width * height:
        resized = bucket.height, _divide(bucket.height * width, height)
    else:
        resized = _divide(bucket.width * height, width), bucket.width
    return Crop(*resized, (resized[0] - bucket.height) // 2, (resized[1] - bucket.width) // 2)


def _divide(numerator: int, denominator: int) -> int:
    """To the nearest integer, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _adm(height: int, width: int, size: int) -> Crop:
    """The geometry of ADM's center_crop_arr. Its float product and Python's rounding are part of the published rule,
    so they are kept: another rounding would move some crops by a pixel."""
    while min(height, width) >= 2 * size:
        height, width = height // 2, width // 2
    scale = size / min(height, width)
    height, width = round(height * scale), round(width * scale)
    return Crop(height, width, (height - size) // 2, (width - size) // 2)


def _native(height: int, width: int, factor: int) -> tuple[Bucket, Crop]:
    bucket = Bucket(height // factor * factor, width // factor * factor)
    if min(bucket.height, bucket.width) == 0:
        raise SampleSkipped("too_small", f"{height}x{width} pixels; both sides must be at least {factor}")
    return bucket, Crop(height, width, (height - bucket.height) // 2, (width - bucket.width) // 2)
