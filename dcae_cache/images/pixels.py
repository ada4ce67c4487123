"""Encoded bytes to a fitted image: decoded, upright, sRGB, resized and cropped to its bucket.

    pixels = load_pixels(data, BucketRule(kind="area", resolution=512), max_pixels=10**8)     # uint8 [h, w, 3]

Whatever is wrong with the bytes ends as SampleSkipped with one of these reasons:
empty · not_an_image · unsupported · truncated · corrupt · too_many_pixels · too_small · upscale_limit

Any number of threads may decode at once. Knows nothing of sources, batches or tensors.
"""

from __future__ import annotations

import logging
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..errors import SampleSkipped
from ..records import Bucket, Crop, Pixels
from .buckets import BucketRule, bucket_for
from .color import flatten, to_srgb
from .resample import lanczos

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"})

# A JPEG may be decoded at 1/2, 1/4 or 1/8 (draft) as long as it stays this many times larger than the resized image,
# and only if it then shows so little detail (rms of second differences, in levels) that it can't have lost any that
# counts. Both together keep the result within 1/255 rms of resizing all pixels; camera photos mostly pass. Smaller
# images were reduced before and are sharp to the pixel: trying costs more there than the few that pass give back.
_DRAFT_PIXELS = 4_000_000
_DRAFT_GAP = 2
_DRAFT_DETAIL = 12.0
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Without a handler of the application's, what Pillow logs about damaged files would land on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_PIL_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def load_pixels(data: bytes, rule: BucketRule, max_pixels: int) -> Pixels:
    """Decode ``data`` and fit it by ``rule``: one antialiased Lanczos resample straight into the crop window (with
    ``crop="adm"`` the steps of ADM's center_crop_arr instead). JPEG, PNG, WebP, AVIF, BMP, TIFF and GIF; of several
    frames the first. EXIF orientation is applied, ICC profiles are converted, alpha is composited on white.

    Raises SampleSkipped for anything else and anything broken; an image of more than ``max_pixels`` is never decoded.
    Damage that a format can't show (flipped bits inside a JPEG's scan) can't be seen here either.
    """
    with _bad_bytes_skipped():
        image = _open(BytesIO(data), max_pixels)
        _check_end(image, data)
        if image.format != "JPEG":  # only a JPEG gains from knowing its size before it is decoded
            image.load()
        orientation = _orientation(image)
    height, width = _upright_size(image, orientation)
    bucket, crop = bucket_for(height, width, rule)
    with _bad_bytes_skipped():
        image, shrunk = _decode(image, data, crop, orientation, rule)
        fitted = _fit(image, shrunk, (height, width), orientation, bucket, crop, adm=rule.crop == "adm")
    return Pixels(data=fitted, height=height, width=width, bucket=bucket, crop=crop)


def image_size(data: bytes | BinaryIO, max_pixels: int) -> tuple[int, int]:
    """Upright (height, width), from the header alone; the same failures as load_pixels, as far as a header shows them.

    (A PNG that has its EXIF orientation after its pixels is reported as stored; load_pixels turns it.)
    """
    with _bad_bytes_skipped():
        image = _open(BytesIO(data) if isinstance(data, bytes) else data, max_pixels)
        return _upright_size(image, _orientation(image))


# --- opening -------------------------------------------------------------------------------------------------------


@contextmanager
def _bad_bytes_skipped() -> Iterator[None]:
    """Whatever Pillow raises over the bytes it is given becomes SampleSkipped; its warnings are not shown."""
    # The filter stays: warnings.catch_warnings would undo that of another thread. It names nothing but Pillow.
    if _PIL_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    except SampleSkipped:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise SampleSkipped("too_many_pixels", str(error) or "there is no memory for its pixels") from error
    except Exception as error:
        origin = error.__cause__ or error
        cut = isinstance(origin, EOFError | struct.error | IndexError) or "truncat" in str(error).lower()
        raise SampleSkipped("truncated" if cut else "corrupt", str(error) or type(error).__name__) from error


def _open(file: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
    # Not Image.open: it judges sizes by a global limit, and answers through warnings.
    head = file.read(64)
    file.seek(0)
    image = _decoder_for(head)(file)
    image.decodermaxblock = 2**20  # the default of 64 KiB copies what is left over each time
    width, height = image.size
    if width * height > max_pixels:
        raise SampleSkipped("too_many_pixels", f"{height}x{width} pixels are more than the limit of {max_pixels}")
    return image


def _decoder_for(head: bytes) -> type[ImageFile.ImageFile]:
    if not head:
        raise SampleSkipped("empty", "there are no bytes")
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImagePlugin.TiffImageFile
    if head.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    if head[4:8] == b"ftyp" and (b"avif" in head or b"avis" in head):
        return AvifImagePlugin.AvifImageFile
    if head[4:8] in (b"ftyp", b"JXL ", b"jP  ") or head.startswith((b"\xff\x0a", b"\xff\x4f\xff\x51", b"8BPS")):
        raise SampleSkipped("unsupported", f"HEIC, JPEG XL, JPEG 2000 or Photoshop ({head[:12]!r}); convert it first")
    raise SampleSkipped("not_an_image", f"it begins with {head[:12]!r}, which no image format read here does")


def _check_end(image: ImageFile.ImageFile, data: bytes) -> None:
    """What the decoders let pass: they would fill up the missing part."""
    if image.format == "JPEG" and not any(data[-16:]):
        assert image.fp is not None
        if data.rfind(b"\xff\xd9", image.fp.tell()) < 0:
            raise SampleSkipped("truncated", "the JPEG ends in zeros, without its end-of-image marker")


def _orientation(image: ImageFile.ImageFile) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return 1
    try:
        # Not image.getexif(): on a PNG that one decodes the pixels to look behind them.
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # broken EXIF says nothing against the pixels
        return 1
    return orientation if orientation in _TURNS else 1


def _upright_size(image: ImageFile.ImageFile, orientation: int) -> tuple[int, int]:
    return (image.width, image.height) if orientation >= 5 else (image.height, image.width)


# --- fitting -------------------------------------------------------------------------------------------------------


def _decode(
    image: ImageFile.ImageFile, data: bytes, crop: Crop, orientation: int, rule: BucketRule
) -> tuple[ImageFile.ImageFile, float]:
    """The image with its pixels decoded, and how many times smaller than they are stored."""
    # More than 4 bits a pixel are hardly ever smooth enough: not worth trying.
    num_pixels = image.width * image.height
    if image.format == "JPEG" and rule.crop != "adm" and num_pixels >= max(_DRAFT_PIXELS, 2 * len(data)):
        across, down = crop.resized_width, crop.resized_height
        if orientation >= 5:
            across, down = down, across
        width = image.width
        drafted = image.draft(None, (_DRAFT_GAP * across, _DRAFT_GAP * down))
        if drafted is not None and drafted[1][2] < width:
            image.load()
            if _detail(image) <= _DRAFT_DETAIL:
                return image, width / drafted[1][2]
            image = JpegImagePlugin.JpegImageFile(BytesIO(data))
    image.load()
    return image, 1.0


def _detail(image: Image.Image) -> float:
    """Rms of the second differences along both axes, on a sample of the lines."""
    pixels = np.atleast_3d(np.asarray(image))
    step = max(image.height * image.width // 2**15, 1)
    lines = pixels[::step].astype(np.int16), pixels[:, ::step].swapaxes(0, 1).astype(np.int16)
    bends = [np.square(line[:, 2:] - 2 * line[:, 1:-1] + line[:, :-2], dtype=np.float32).mean() for line in lines]
    return float(np.sqrt(np.mean(bends)))


def _fit(
    image: Image.Image,
    shrunk: float,
    size: tuple[int, int],
    orientation: int,
    bucket: Bucket,
    crop: Crop,
    adm: bool,
) -> NDArray[np.uint8]:
    """uint8 [bucket.height, bucket.width, 3]; ``size`` is the upright (height, width), before any draft."""
    resized = crop.resized_height, crop.resized_width
    flat, transform = flatten(image)
    if orientation != 1:
        flat = flat.transpose(_TURNS[orientation])
    if adm:
        pixels = _window(_adm(flat, resized, bucket), bucket, crop)
    elif resized == size:
        pixels = _window(flat, bucket, crop)
    else:
        pixels = lanczos(flat, (bucket.height, bucket.width), _box(flat, size, shrunk, orientation, bucket, crop))
    return to_srgb(pixels, transform)


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
