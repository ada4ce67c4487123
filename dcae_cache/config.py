"""What a run is asked to do, in two halves that must not be mixed.

``EncodeConfig`` is the recipe as the user states it: everything that changes a stored value. ``RunOptions`` is how to
get there (speed, limits, devices) and changes no value. Neither knows of torch, of files or of a command line.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UsageError
from .images.buckets import BucketKind, BucketRule, CropKind
from .records import DtypeName

DEFAULT_MAX_PIXELS = 178_956_970  # Pillow's own bomb limit: a 16-bit RGBA image of this size takes 1.4 GB to decode


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """The recipe: everything that changes a stored value. Sizes in pixels.

    Raises UsageError when a setting makes no sense by itself; settings that clash with the model's factor are found
    by ``bucket_rule``.
    """

    model: str = "f32c32-mix"  # short name, hub repo or local folder
    revision: str | None = None  # of the hub repo
    scaling_factor: float | None = None  # where the model publishes none
    resolution: int = 512
    bucket: BucketKind = "area"
    crop: CropKind = "center"
    max_aspect: float = 4.0
    max_upscale: float | None = None
    bucket_step: int = 64  # kohya's three
    bucket_min: int = 256
    bucket_max: int = 1024
    dtype: DtypeName = "bf16"  # of the stored latents
    compute_dtype: DtypeName | None = None  # of the network; None: the stored one
    flip: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise UsageError(f"`max_pixels` must be at least 1, not {self.max_pixels}.")
        if self.scaling_factor is not None and not self.scaling_factor > 0:
            raise UsageError(f"`scaling_factor` must be above 0, not {self.scaling_factor}.")

    def bucket_rule(self, factor: int) -> BucketRule:
        """The bucket rule for an autoencoder of this factor; UsageError when the two don't fit."""
        return BucketRule(
            kind=self.bucket,
            resolution=self.resolution,
            factor=factor,
            crop=self.crop,
            max_aspect=self.max_aspect,
            max_upscale=self.max_upscale,
            step=self.bucket_step,
            min_side=self.bucket_min,
            max_side=self.bucket_max,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run goes about it. None of it changes a key, an order or a value (part_size and limit say how much of the
    source is planned, and only for samples that have no part yet)."""

    batch_size: int | None = None  # images per batch; None: by the device and the bucket's area
    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps
    num_processes: int | None = None  # on this machine; None: one for each visible GPU, else one
    part_range: tuple[int, int] | None = None  # (i, n): only the parts whose number is i modulo n, beside other jobs
    workers: int | None = None  # decoding threads of this machine; None: one per core
    part_size: int = 1024  # samples
    limit: int | None = None  # at most this many samples in all
    max_skip_rate: float | None = None  # of all samples; None: never fail on skips
    prune: bool = False  # drop what is no longer in the source
    refresh_metadata: bool = False  # read captions, labels and attributes of finished parts again
    repair: bool = False  # check every part's hashes first and make broken ones anew
    retry_skipped: bool = False  # try skipped samples again
    overwrite: bool = False  # delete a cache of another recipe first
    allow_damaged: bool = False  # don't fail for input files that break off
    offline: bool = False
    cache_dir: str | None = None  # of the hub
    token: str | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("batch_size", self.batch_size),
            ("num_processes", self.num_processes),
            ("workers", self.workers),
            ("part_size", self.part_size),
            ("limit", self.limit),
        ):
            if value is not None and value < 1:
                raise UsageError(f"`{name}` must be at least 1, not {value}.")
        if self.prune and self.limit is not None:
            raise UsageError("`prune` needs the whole listing, so it can't be combined with `limit`.")
        if self.part_range is not None:
            self._check_part_range(*self.part_range)
        if self.max_skip_rate is not None and not 0 <= self.max_skip_rate <= 1:
            raise UsageError(f"`max_skip_rate` is a share between 0 and 1, not {self.max_skip_rate}.")

    def _check_part_range(self, number: int, count: int) -> None:
        if not 0 <= number < count:
            raise UsageError(
                f"`part_range` counts from 0 to n-1: 0/{count} to {count - 1}/{count}, not {number}/{count}."
            )
        for name, value in (("prune", self.prune), ("overwrite", self.overwrite), ("repair", self.repair)):
            if value:
                raise UsageError(f"`{name}` needs the cache to itself, so it can't be combined with `part_range`.")
