"""Which pictures of an image are stored: one, one at each of several resolutions, or several random crops of these.

    views = Fitting((rule_of_256, rule_of_512)).views_of("cats/001", 1365, 2048)

Pure functions of integers and the image's key: the same whatever came before, on any machine, in any process. Knows
nothing of pixels or files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from ..errors import SampleSkipped
from ..records import Bucket, Crop
from .buckets import WITH_RESOLUTION, BucketRule, bucket_for

SKIPPED_SUFFIX = "@"  # of the row of an image that has no view


@dataclass(frozen=True, slots=True)
class View:
    """One picture of an image: cropped so for that bucket. ``resolution``: that of its rule, None where the rule has
    none. ``number``: of its random crop, from 0; None: the crop is no random one."""

    bucket: Bucket
    crop: Crop
    resolution: int | None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Fitting:
    """``rules``: one for each resolution, ascending. ``crops``: how many random windows of each are kept; 0: the one
    that the rule says. ``seed``: what they follow from, together with the image's key."""

    rules: tuple[BucketRule, ...]
    crops: int = 0
    seed: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether an image is one row, called by the image's own key."""
        return len(self.rules) == 1 and not self.crops

    @property
    def num_views(self) -> int:
        """Of an image that is large enough for every resolution."""
        return len(self.rules) * max(self.crops, 1)

    def views_of(self, key: str, height: int, width: int) -> list[View]:
        """The views of an upright image, by resolution, then crop; resolutions that it is too small for are left out.

        Raises SampleSkipped where there is none left: as the smallest resolution's rule says it.
        """
        views: list[View] = []
        refused: SampleSkipped | None = None
        for rule in self.rules:
            try:
                bucket, crop = bucket_for(height, width, rule)
            except SampleSkipped as skip:
                refused = refused or skip
                continue
            resolution = rule.resolution if rule.kind in WITH_RESOLUTION else None
            if not self.crops:
                views.append(View(bucket, crop, resolution))
            for number in range(self.crops):
                views.append(View(bucket, random_crop(crop, bucket, key, self.seed, number), resolution, number))
        if not views:
            assert refused is not None, "a rule gives a view or refuses"
            raise refused
        return views

    def key_of(self, key: str, view: View) -> str:
        """The key of a view's row: the image's own, or that and "@512", "@c3" or "@512c3". What follows the last "@"
        is never part of the image's key, so no two rows of different images share one."""
        if self.is_plain:
            return key
        resolution = str(view.resolution) if len(self.rules) > 1 else ""
        return f"{key}@{resolution}{'' if view.number is None else f'c{view.number}'}"

    def key_of_skipped(self, key: str) -> str:
        """The key of the row of an image without a view."""
        return key if self.is_plain else key + SKIPPED_SUFFIX


def random_crop(crop: Crop, bucket: Bucket, key: str, seed: int, number: int) -> Crop:
    """The same resize, with the bucket-sized window anywhere in it. The first 16 bytes of the sha256 of
    "{seed} {number} {key}" are two numbers u in [0, 2^64): top (then left) is u * (room + 1) / 2^64, rounded down."""
    digest = hashlib.sha256(f"{seed} {number} {key}".encode("utf-8", "surrogateescape")).digest()
    down, across = int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
    return replace(
        crop,
        top=down * (crop.resized_height - bucket.height + 1) >> 64,
        left=across * (crop.resized_width - bucket.width + 1) >> 64,
    )
