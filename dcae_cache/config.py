"""What a run is asked to do, in two halves that must not be mixed.

``EncodeConfig`` is the recipe as the user states it: everything that changes a stored value. ``RunOptions`` is how to
get there (speed, limits, devices) and changes no value. Neither knows of torch, of files or of a command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .errors import UsageError
from .images.buckets import AUTOMATIC, BucketKind, BucketRule, parse_bucket
from .images.buckets import WITH_RESOLUTION as WITH_RESOLUTION  # for readers of recipes, too
from .images.views import Fitting
from .records import DtypeName, Kernels

CropChoice = Literal["center", "adm", "random"]
DEFAULT_MAX_PIXELS = 178_956_970  # Pillow's own bomb limit: a 16-bit RGBA image of this size takes 1.4 GB to decode


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """The recipe: everything that changes a stored value. Sizes are in pixels.

    The model
    ``model``: a name that ``dcae-cache models`` lists, a hub repo (``owner/name``) or a local folder.
    ``revision``: branch, tag or commit of the hub repo; None: its newest.
    ``subfolder``: where in the repo or folder the model lies; None: at its top, or in vae/.
    ``variant``: of the weights' files, such as "fp16" for diffusion_pytorch_model.fp16.safetensors; None: those
    without one, if there are any.
    ``latent_channels``: store so many of the first channels, of models that are made for it (DC-AE 1.5); None: all.
    ``scaling_factor``: stored latents are raw ones times this; None: the model's own. Needed where none is published.

    Sizes (docs/buckets.md)
    ``resolution``: side of the square whose area buckets keep.
    ``resolutions``: several such sides: every image is decoded once and stored at each of them, but those that it is
    too small for (``max_upscale``); ``resolution`` is the largest then.
    ``bucket``: the rule: "area", "square", "list", "kohya", "native", or a trainer's table such as "sana-1024".
    ``buckets``: "HEIGHTxWIDTH" each: these sizes and no others; ``bucket`` is "list" then.
    ``crop``: "center", or "adm" for ADM's resize and centre crop, with "square" only; "random": see ``crops``.
    ``crops``: store so many crops of each image, each anywhere in the resized image, as follows from its key and
    ``crop_seed``; ``crop`` is "random" then. 0: the one that ``crop`` says.
    ``max_aspect``: long side over short side of an "area" bucket, at least 1.
    ``max_upscale``: images that would grow by more than this factor are skipped; None: none is.
    ``bucket_step``: what sides are multiples of. None: of "area" by factor and resolution, of "kohya" 64.
    ``bucket_min``, ``bucket_max``: of "kohya": the shortest side and the longest.

    Numbers
    ``dtype``: of the stored latents, "bf16", "fp16" or "fp32".
    ``compute_dtype``: of the network; None: the same.
    ``flip``: store the latents of the mirrored images too.
    ``max_pixels``: an image of more pixels is skipped, and never decoded.

    Raises UsageError when a setting makes no sense by itself; settings that clash with the model's factor are found
    by ``fitting``, which ``encode_dataset`` asks before anything is written.
    """

    model: str = "f32c32-mix"
    revision: str | None = None
    subfolder: str | None = None
    variant: str | None = None
    latent_channels: int | None = None
    scaling_factor: float | None = None
    resolution: int = 512
    resolutions: tuple[int, ...] = ()
    bucket: BucketKind = "area"
    crop: CropChoice = "center"
    crops: int = 0
    crop_seed: int = 0
    max_aspect: float = 4.0
    max_upscale: float | None = None
    buckets: tuple[str, ...] = ()
    bucket_step: int | None = None
    bucket_min: int = 256
    bucket_max: int = 1024
    dtype: DtypeName = "bf16"
    compute_dtype: DtypeName | None = None
    flip: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise UsageError(f"`max_pixels` must be at least 1, not {self.max_pixels}.")
        if self.latent_channels is not None and self.latent_channels < 1:
            raise UsageError(f"`latent_channels` must be at least 1, not {self.latent_channels}.")
        if self.subfolder is not None and not {"", ".", ".."}.isdisjoint(self.subfolder.strip("/").split("/")):
            raise UsageError(f"`subfolder` is {self.subfolder!r}; expected the path of a folder inside `model`.")
        if self.scaling_factor is not None and not self.scaling_factor > 0:
            raise UsageError(f"`scaling_factor` must be above 0, not {self.scaling_factor}.")
        for name, dtype in (("dtype", self.dtype), ("compute_dtype", self.compute_dtype or self.dtype)):
            if dtype not in get_args(DtypeName):
                raise UsageError(f"`{name}` is one of {', '.join(get_args(DtypeName))}, not {dtype!r}.")
        if self.buckets:
            own = sorted({parse_bucket(text) for text in self.buckets})
            if self.bucket not in ("area", "list"):
                raise UsageError(f"`buckets` are all the sizes there are: leave `bucket` {self.bucket!r} out.")
            object.__setattr__(self, "buckets", tuple(map(str, own)))
            object.__setattr__(self, "bucket", "list")
        self._settle_resolutions()
        self._settle_crops()

    def _settle_resolutions(self) -> None:
        sides = tuple(sorted(set(self.resolutions)))
        if not sides:
            return
        if len(sides) > 1 and self.bucket not in WITH_RESOLUTION:
            raise UsageError(
                f"Several numbers of `resolution` go with `bucket` {', '.join(WITH_RESOLUTION)}, not {self.bucket}, "
                "which has sizes of its own."
            )
        object.__setattr__(self, "resolution", sides[-1])
        object.__setattr__(self, "resolutions", sides if len(sides) > 1 else ())

    def _settle_crops(self) -> None:
        if self.crops < 0:
            raise UsageError(f"`crops` must be at least 1, or 0 for the one that `crop` says, not {self.crops}.")
        if self.crops and self.crop == "adm":
            raise UsageError("`crops` are taken anywhere in an image, and `crop` adm from its centre: leave one out.")
        if not self.crops and self.crop == "random":
            object.__setattr__(self, "crops", 1)
        if self.crops:
            object.__setattr__(self, "crop", "random")

    @property
    def model_source(self) -> str:
        """The one name of the place where the model lies."""
        return self.model if self.subfolder is None else f"{self.model.rstrip('/')}/{self.subfolder.strip('/')}"

    def fitting(self, factor: int) -> Fitting:
        """How images are fitted for an autoencoder of this factor; UsageError when the two don't fit."""
        sides = self.resolutions or (self.resolution,)
        return Fitting(tuple(self._rule(factor, side) for side in sides), self.crops, self.crop_seed)

    def bucket_rule(self, factor: int) -> BucketRule:
        """The bucket rule for an autoencoder of this factor, of several resolutions that of the largest; UsageError
        when the two don't fit."""
        return self._rule(factor, self.resolution)

    def _rule(self, factor: int, resolution: int) -> BucketRule:
        return BucketRule(
            kind=self.bucket,
            resolution=resolution,
            factor=factor,
            crop="center" if self.crop == "random" else self.crop,
            max_aspect=self.max_aspect,
            max_upscale=self.max_upscale,
            step=AUTOMATIC if self.bucket_step is None else self.bucket_step,
            min_side=self.bucket_min,
            max_side=self.bucket_max,
            buckets=tuple(parse_bucket(text) for text in self.buckets),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run goes about it. None of it changes a key, an order or a value.

    Speed
    ``batch_size``: images at once; None: by the device and the bucket's area.
    ``device``: "auto", "cpu", "cuda", "cuda:N" or "mps".
    ``kernels``: "auto": own GPU kernels where they run, else plain torch; "eager": plain torch.
    ``num_processes``: on this machine; None: one for each visible GPU, else one.
    ``workers``: decoders of this machine, threads or processes as suits the device; None: one for each core.
    ``profile``: a file to write a trace to, for https://ui.perfetto.dev: what each thread and the device did, when.
    Of several processes each writes one beside it, by its rank: trace-rank0.json.

    How much, and in what slices (of samples that have no part yet)
    ``part_size``: samples of a part, where the source doesn't say: the unit of commit and resume.
    ``limit``: at most this many samples in all; None: all.
    ``part_range``: (i, n): only the parts whose number is i modulo n, beside other jobs; None: all.

    What is there already (docs/reliability.md)
    ``prune``: drop the latents of what is no longer in the source.
    ``refresh_metadata``: read captions, labels and attributes of finished parts again.
    ``recheck``: read every source image of finished parts again, and make anew what is another one now.
    ``repair``: check every part's hashes first, make broken parts anew, and do what ``recheck`` does.
    ``retry_skipped``: try skipped samples again.
    ``overwrite``: delete a cache of another recipe first. Nobody is asked.

    What counts as failure
    ``max_skip_rate``: share of samples, 0 to 1, beyond which TooManySkippedError is raised at the end; None: never.
    ``strict``: raise StrictError at the end for whatever the ledger finds left out, unmatched or merged.
    ``allow_damaged``: don't raise DamagedSourceError at the end for input files that break off.

    A cache in an object store
    ``scratch``: folder in which parts are written before they are sent; None: one of this user's.

    The model hub
    ``offline``: use only what was downloaded before.
    ``cache_dir``: where downloads are kept; None: the hub client's own place.
    ``token``: for repos that need one; None: the one that is logged in.

    Raises UsageError for numbers out of range, and for settings that can't be combined.
    """

    batch_size: int | None = None
    device: str = "auto"
    kernels: Kernels = "auto"
    num_processes: int | None = None
    part_range: tuple[int, int] | None = None
    workers: int | None = None
    profile: str | None = None
    part_size: int = 1024
    limit: int | None = None
    max_skip_rate: float | None = None
    prune: bool = False
    refresh_metadata: bool = False
    repair: bool = False
    recheck: bool = False
    retry_skipped: bool = False
    overwrite: bool = False
    strict: bool = False
    allow_damaged: bool = False
    scratch: str | None = None
    offline: bool = False
    cache_dir: str | None = None
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
        if self.kernels not in get_args(Kernels):
            raise UsageError(f"`kernels` is one of {', '.join(get_args(Kernels))}, not {self.kernels!r}.")
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
        for name in ("prune", "overwrite", "repair", "recheck"):
            if getattr(self, name):
                raise UsageError(f"`{name}` needs the cache to itself, so it can't be combined with `part_range`.")
