"""How an upright image is resized and cropped for a bucket, and how much of it that leaves out.

Pure functions of integers. Knows nothing of pixels, or of which bucket is chosen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dcae_cache.errors import SampleSkipped
from dcae_cache.records import Bucket, Crop


def crop_share(height: int, width: int, crop: Crop, bucket: Bucket) -> float:
    """The share of an upright image of height x width pixels, 0 to below 1, that its crop leaves out."""
    kept = min(bucket.height / crop.resized_height, 1.0) * min(bucket.width / crop.resized_width, 1.0)
    return 1.0 - kept if height > 0 and width > 0 else 0.0


def enlargement(height: int, width: int, crop: Crop) -> float:
    """How many times longer the resized image's sides are than those of the image; below 1 where it was reduced."""
    return max(crop.resized_height / height, crop.resized_width / width)


@dataclass(slots=True)
class FitTally:
    """How much of many images is left out, and how many are enlarged. Its memory does not grow with their number."""

    num_images: int = 0
    num_enlarged: int = 0
    largest_enlargement: float = 0.0
    _cropped: float = 0.0
    _per_mille: Counter[int] = field(default_factory=Counter)

    def add(self, cropped: float, enlarged: float) -> None:
        """Count an image by its ``crop_share`` and ``enlargement``."""
        self.num_images += 1
        self.num_enlarged += enlarged > 1
        self.largest_enlargement = max(self.largest_enlargement, enlarged)
        self._cropped += cropped
        self._per_mille[round(1000 * cropped)] += 1

    @property
    def mean_cropped(self) -> float:
        return self._cropped / self.num_images if self.num_images else 0.0

    @property
    def p90_cropped(self) -> float:
        """Nine images of ten lose no more than this share; to a thousandth."""
        below = 0
        for share, count in sorted(self._per_mille.items()):
            below += count
            if below >= 0.9 * self.num_images:
                return share / 1000
        return 0.0


def covering_crop(height: int, width: int, bucket: Bucket) -> Crop:
    """The smallest resize that keeps the aspect ratio and fills the bucket, and the window at its centre."""
    if bucket.height * width >= bucket.width * height:
        resized = bucket.height, _divide(bucket.height * width, height)
    else:
        resized = _divide(bucket.width * height, width), bucket.width
    return Crop(*resized, (resized[0] - bucket.height) // 2, (resized[1] - bucket.width) // 2)


def _divide(numerator: int, denominator: int) -> int:
    """To the nearest integer, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def adm_crop(height: int, width: int, size: int) -> Crop:
    """The geometry of ADM's center_crop_arr. Its float product and Python's rounding are part of the published rule,
    so they are kept: another rounding would move some crops by a pixel."""
    while min(height, width) >= 2 * size:
        height, width = height // 2, width // 2
    scale = size / min(height, width)
    height, width = round(height * scale), round(width * scale)
    return Crop(height, width, (height - size) // 2, (width - size) // 2)


def native_crop(height: int, width: int, factor: int) -> tuple[Bucket, Crop]:
    """The middle of the image whose sides are multiples of the factor. Raises SampleSkipped "too_small"."""
    bucket = Bucket(height // factor * factor, width // factor * factor)
    if min(bucket.height, bucket.width) == 0:
        raise SampleSkipped("too_small", f"{height}x{width} pixels; both sides must be at least {factor}")
    return bucket, Crop(height, width, (height - bucket.height) // 2, (width - bucket.width) // 2)
