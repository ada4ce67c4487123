"""Encoded bytes to a fitted image: decoded, upright, sRGB, resized and cropped to its bucket.

    pixels = load_pixels(data, BucketRule(kind="area", resolution=512), max_pixels=10**8)     # uint8 [h, w, 3]

Whatever is wrong with the bytes ends as SampleSkipped with one of these reasons:
empty · not_an_image · unsupported · truncated · corrupt · too_many_pixels · too_small · upscale_limit

Any number of threads may decode at once. Knows nothing of sources, batches or tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from ..errors import SampleSkipped
from ..records import Bucket, Crop, Pixels
from .buckets import BucketRule, bucket_for
from .color import flatten, to_srgb
from .memory import Room, room_for
from .mending import TURNS
from .opening import Opened, bad_bytes_skipped, open_image, open_whole
from .resample import lanczos
from .views import Fitting, View

# A JPEG may be decoded at 1/2, 1/4 or 1/8 (draft) as long as it stays this many times larger than the resized image,
# and only if it then shows so little detail (rms of second differences, in levels) that it can't have lost any that
# counts. Both together keep the result within 1/255 rms of resizing all pixels; camera photos mostly pass. Smaller
# images were reduced before and are sharp to the pixel: trying costs more there than the few that pass give back.
_DRAFT_PIXELS = 4_000_000
_DRAFT_GAP = 2
_DRAFT_DETAIL = 12.0


def load_pixels(data: bytes, rule: BucketRule, max_pixels: int, room: Room = room_for) -> Pixels:
    """Decode ``data`` and fit it by ``rule``: one antialiased Lanczos resample straight into the crop window (with
    ``crop="adm"`` the steps of ADM's center_crop_arr instead). JPEG, PNG, WebP, AVIF, BMP, TIFF and GIF, HEIC and
    JPEG XL with their extras; of several frames the first. EXIF orientation is applied, colours are converted to sRGB
    from the space that the file declares, alpha is composited on white.

    ``room`` holds room for an image's pixels while they are decoded: that of this process, unless several share it.

    Raises SampleSkipped for anything else and anything broken; an image of more than ``max_pixels`` is never decoded.
    Damage that a format can't show (flipped bits inside a JPEG's scan) can't be seen here either.
    """
    adm = rule.crop == "adm"
    return load_views(data, lambda height, width: [bucket_for(height, width, rule)], max_pixels, adm=adm, room=room)[0]


def load_fitted(
    data: bytes, key: str, fitting: Fitting, max_pixels: int, room: Room = room_for
) -> list[tuple[View, Pixels]]:
    """The pictures of the image called ``key`` that are stored, each with what it is a view of; as ``load_views``."""
    views: list[View] = []

    def fit(height: int, width: int) -> list[tuple[Bucket, Crop]]:
        views[:] = fitting.views_of(key, height, width)
        return [(view.bucket, view.crop) for view in views]

    adm = any(rule.crop == "adm" for rule in fitting.rules)
    return list(zip(views, load_views(data, fit, max_pixels, adm=adm, room=room), strict=True))


def load_views(
    data: bytes,
    fit: Callable[[int, int], Sequence[tuple[Bucket, Crop]]],
    max_pixels: int,
    *,
    adm: bool = False,
    room: Room = room_for,
) -> list[Pixels]:
    """Several pictures of one image, as ``fit`` says for its upright height and width: each the very pixels that
    ``load_pixels`` gives for that bucket and crop. ``adm``: by the steps of ADM's center_crop_arr.

    The image is decoded once; a large JPEG that is smooth enough to be decoded smaller, once for each scale that one
    of the pictures calls for. Raises SampleSkipped as ``load_pixels`` does.
    """
    with bad_bytes_skipped(BytesIO(data)):
        opened = open_whole(data, max_pixels)
    height, width = opened.size
    fits = fit(height, width)
    with room(height * width), bad_bytes_skipped(BytesIO(data)):
        decoder = _Decoder(opened, data, draft=not adm)
        return [
            Pixels(_fit(decoder.at(crop), opened, bucket, crop, adm=adm), height, width, bucket, crop)
            for bucket, crop in fits
        ]


def image_size(data: bytes | BinaryIO, max_pixels: int) -> tuple[int, int]:
    """Upright (height, width), from the header alone; the same failures as load_pixels, as far as a header shows
    them. A file object must be seekable."""
    file = BytesIO(data) if isinstance(data, bytes) else data
    with bad_bytes_skipped(file):
        return open_image(file, max_pixels).size


@dataclass(frozen=True, slots=True)
class _Flat:
    """Decoded pixels, upright, without alpha; ``shrunk``: how many times smaller than they are stored."""

    image: Image.Image
    transform: ImageCms.ImageCmsTransform | None  # still to be applied
    shrunk: float

    @staticmethod
    def of(image: Image.Image, orientation: int, shrunk: float = 1.0) -> _Flat:
        flat, transform = flatten(image)
        if orientation != 1:
            flat = flat.transpose(TURNS[orientation])
        return _Flat(flat, transform, shrunk)


class _Decoder:
    """An image's pixels for any crop of it, each scale of them decoded once."""

    def __init__(self, opened: Opened, data: bytes, *, draft: bool) -> None:
        self._size, self._orientation = opened.size, opened.orientation
        self._num_pixels = opened.size[0] * opened.size[1]
        # More than 4 bits a pixel are hardly ever smooth enough: not worth trying.
        self._draft = draft and opened.draftable and self._num_pixels >= max(_DRAFT_PIXELS, 2 * len(data))
        self._opened: Opened | None = opened  # as long as its pixels aren't decoded
        self._data = data
        self._whole: _Flat | None = None
        self._drafts: dict[float, _Flat | None] = {}  # how many times smaller -> None: too little is left of it

    def at(self, crop: Crop) -> _Flat:
        """What to resample for a crop."""
        return (self._drafted(crop) if self._draft else None) or self._all()

    def _all(self) -> _Flat:
        if self._whole is None:
            image = self._fresh().load()
            height, width = self._size
            if image.size != ((height, width) if self._orientation >= 5 else (width, height)):
                raise SampleSkipped("corrupt", f"its header says {height}x{width} pixels, and there are others")
            self._whole = _Flat.of(image, self._orientation)
        return self._whole

    def _drafted(self, crop: Crop) -> _Flat | None:
        """A smooth JPEG, decoded smaller; None for one of which all pixels are needed."""
        opened = self._fresh()
        image = opened.image
        assert isinstance(image, ImageFile.ImageFile)
        across, down = crop.resized_width, crop.resized_height
        if self._orientation >= 5:
            across, down = down, across
        width = image.width
        drafted = image.draft(None, (_DRAFT_GAP * across, _DRAFT_GAP * down))
        if drafted is None or drafted[1][2] >= width:
            self._opened = opened
            return None
        shrunk = width / drafted[1][2]
        if shrunk not in self._drafts:
            loaded = opened.load()
            smooth = _detail(loaded) <= _DRAFT_DETAIL
            self._drafts[shrunk] = _Flat.of(loaded, self._orientation, shrunk) if smooth else None
        return self._drafts[shrunk]

    def _fresh(self) -> Opened:
        opened, self._opened = self._opened, None
        return opened or open_whole(self._data, self._num_pixels)


def _detail(image: Image.Image) -> float:
    """Rms of the second differences along both axes, on a sample of the lines."""
    pixels = np.atleast_3d(np.asarray(image))
    step = max(image.height * image.width // 2**15, 1)
    lines = pixels[::step].astype(np.int16), pixels[:, ::step].swapaxes(0, 1).astype(np.int16)
    bends = [np.square(line[:, 2:] - 2 * line[:, 1:-1] + line[:, :-2], dtype=np.float32).mean() for line in lines]
    return float(np.sqrt(np.mean(bends)))


def _fit(found: _Flat, opened: Opened, bucket: Bucket, crop: Crop, *, adm: bool) -> NDArray[np.uint8]:
    """uint8 [bucket.height, bucket.width, 3]."""
    flat, size = found.image, opened.size
    resized = crop.resized_height, crop.resized_width
    if adm:
        pixels = _window(_adm(flat, resized, bucket), bucket, crop)
    elif resized == size:
        pixels = _window(flat, bucket, crop)
    else:
        box = _box(flat, size, found.shrunk, opened.orientation, bucket, crop)
        pixels = lanczos(flat, (bucket.height, bucket.width), box)
    return to_srgb(pixels, found.transform)


def _box(
    flat: Image.Image, size: tuple[int, int], shrunk: float, orientation: int, bucket: Bucket, crop: Crop
) -> tuple[float, float, float, float]:
    """The crop window in pixels of ``flat``: the upright image of ``size``, decoded ``shrunk`` times smaller."""
    # A side that does not divide by ``shrunk`` was rounded up: part of a pixel too much, at the end it is stored at.
    below = flat.height - size[0] / shrunk if orientation in (3, 4, 7, 8) else 0.0
    beside = flat.width - size[1] / shrunk if orientation in (2, 3, 6, 7) else 0.0
    tall, wide = size[0] / crop.resized_height / shrunk, size[1] / crop.resized_width / shrunk
    return (
        beside + crop.left * wide,
        below + crop.top * tall,
        beside + (crop.left + bucket.width) * wide,
        below + (crop.top + bucket.height) * tall,
    )


def _adm(image: Image.Image, resized: tuple[int, int], bucket: Bucket) -> Image.Image:
    """The resampling of ADM's center_crop_arr (openai/guided-diffusion, image_datasets.py)."""
    while min(image.size) >= 2 * bucket.height:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    return image.resize(resized[::-1], resample=Image.Resampling.BICUBIC)


def _window(image: Image.Image, bucket: Bucket, crop: Crop) -> NDArray[np.uint8]:
    window = np.asarray(image)[crop.top : crop.top + bucket.height, crop.left : crop.left + bucket.width]
    return np.array(window, order="C").reshape(bucket.height, bucket.width, -1)
