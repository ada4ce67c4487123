"""The dataclasses that flow along the way of an image. They hold data and know nothing of where it goes next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

if TYPE_CHECKING:  # the command line starts without numpy
    import numpy as np
    from numpy.typing import NDArray

FORMAT_NAME = "dcae-cache"
FORMAT_VERSION = 1  # of the cache on disk, see docs/format.md
CAPTION_BYTES = "caption_bytes"  # the attribute that holds, in base64, a caption whose encoding isn't known
CAPTIONS = "captions"  # the attribute that holds all captions of an image that has several


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The size in pixels that an image is fitted to; both sides divide by the autoencoder's factor."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class Crop:
    """How an upright image becomes a bucket: resized to (resized_height, resized_width), then the bucket-sized
    window whose upper left corner lies at (top, left) of the resized image is kept. Pixels, integers."""

    resized_height: int
    resized_width: int
    top: int
    left: int


class Entry(NamedTuple):  # there are millions, and a tuple is made five times as fast as a frozen dataclass
    """One unit of a source as listed, before anything is opened: a file of a folder, an input tar, a row of a table.

    ``key`` is unique in the source; ``location`` is what the source needs to find it again.
    ``num_bytes`` and ``mtime_ns`` are what tells a changed entry from an unchanged one; where there is no such time,
    the latter is a number made of whatever else names a version. ``max_samples``: only so many of its first samples
    are wanted (``limit``); None: all.
    """

    key: str
    location: str
    num_bytes: int
    mtime_ns: int
    max_samples: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Which source a plan was made for, and how it was read: enough to open it again."""

    uri: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A fixed slice of the source: the unit of assignment, memory, commit and resume."""

    number: int
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        return part_name(self.number)


def part_name(number: int) -> str:
    """The stem of a part's files."""
    return f"part-{number:06d}"


def part_number(name: str) -> int:
    """The inverse of ``part_name``; it also takes the name of one of the part's files."""
    return int(name.removeprefix("part-").partition(".")[0])


@dataclass(frozen=True, slots=True)
class Notes:
    """What is known of one image besides its pixels."""

    caption: str | None = None
    label: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One source image, still encoded, with whatever the source says of it."""

    key: str
    data: bytes = field(repr=False)
    source: str
    caption: str | None = None
    label: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    shard: str | None = None  # stem of the input tar or data file it came in


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A local file whose whole content is an encoded image: enough for another process to read it. ``name`` is what
    messages call it; one of more than ``max_bytes`` is refused."""

    path: str
    name: str
    max_bytes: int


@dataclass(frozen=True, slots=True)
class SampleRef:
    """A sample that is known but not read yet. ``load`` reads it; ``open`` opens its encoded bytes for those who need
    only the header; ``notes`` reads what is said of it, without its image. All may run on any thread, and raise
    OSError or SampleSkipped when that can't be had. ``num_bytes`` is what it holds in memory already. ``file``: where
    the sample is what that file holds and what ``notes`` says, under the same key and source; else None."""

    key: str
    source: str
    load: Callable[[], Sample]
    open: Callable[[], BinaryIO]
    notes: Callable[[], Notes] = Notes
    num_bytes: int = 0
    file: ImageFile | None = None


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded, upright, fitted image: ``data`` is uint8 [bucket.height, bucket.width, 3], sRGB; in memory it may lie
    band by band, as the network wants it."""

    data: NDArray[np.uint8] = field(repr=False)
    height: int
    width: int
    bucket: Bucket
    crop: Crop


@dataclass(frozen=True, slots=True)
class StoredAt:
    """Where a latent is stored already: the part, and the row in its bucket's tensor."""

    part: str
    row: int
    flip: bool  # that of the mirrored image, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a part's table: what became of one sample. Field names are the column names of cache format 1."""

    key: str
    status: str  # "ok" or "skipped"
    reason: str | None = None  # why it was skipped: a short stable word
    detail: str | None = None  # and a sentence
    bucket_height: int | None = None
    bucket_width: int | None = None
    row: int | None = None  # in its bucket's tensor
    height: int | None = None  # of the upright original
    width: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    crop_top: int | None = None
    crop_left: int | None = None
    caption: str | None = None
    label: str | None = None
    attributes: str | None = None  # JSON
    source: str
    shard: str | None = None  # stem of the input tar or data file
    source_bytes: int | None = None
    source_hash: str | None = None  # sha256 of the encoded bytes
    image: str | None = None  # the image's key, in caches that hold several rows of an image: see VIEW_COLUMNS
    resolution: int | None = None  # of the several that images are stored at
    crop: int | None = None  # number of the random crop, from 0

    @property
    def image_key(self) -> str:
        """The key of the image that the row is of."""
        return self.key if self.image is None else self.image

    @property
    def bucket(self) -> Bucket | None:
        if self.bucket_height is None or self.bucket_width is None:
            return None
        return Bucket(self.bucket_height, self.bucket_width)


VIEW_COLUMNS = ("image", "resolution", "crop")  # only there where an image has several rows
DtypeName = Literal["bf16", "fp16", "fp32"]
Kernels = Literal["auto", "eager"]  # what is asked for
UsedKernels = Literal["triton", "eager"]  # what came of it
