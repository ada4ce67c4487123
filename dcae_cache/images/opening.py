"""From encoded bytes to an image whose size, orientation and colour space are known, and whose pixels can be had.

    opened = open_image(data, max_pixels=10**8)     # header only
    image = opened.load()                           # pixels, as stored: neither turned nor converted

Each kind of file has its place here, with what its decoder gets wrong. Whatever is wrong with the bytes ends as
SampleSkipped. Knows nothing of buckets, resizing or sources.
"""

from __future__ import annotations

import logging
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import BinaryIO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from ..errors import SampleSkipped
from . import boxes, declared_color, jpeg, mending, png, riff
from .formats import HEAD_BYTES, kind_of
from .heif import open_heif
from .jxl import decode_jxl, jxl_size
from .tiff import TiffFile, is_raw

_ORIENTATION = 0x0112
# Without a handler of the application's, what Pillow logs about damaged files would land on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_PIL_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@dataclass(slots=True, kw_only=True)
class Opened:
    """An image whose pixels may still be encoded.

    ``size`` is its upright (height, width); ``orientation`` EXIF's, 1 to 8. ``load`` gives the pixels as stored, with
    the profile that they are to be converted from as ``info["icc_profile"]``. ``check`` raises SampleSkipped for bytes
    of which a part is missing though the decoder would not say so. ``draftable``: a JPEG may be decoded smaller.
    """

    image: Image.Image
    size: tuple[int, int]
    orientation: int
    load: Callable[[], Image.Image]
    check: Callable[[bytes], None] = lambda data: None
    draftable: bool = False


@contextmanager
def bad_bytes_skipped(file: BinaryIO) -> Iterator[None]:
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
        kind = _unread_kind(file)
        if kind:
            raise SampleSkipped("unsupported", f"{kind} is not read here; convert it first") from error
        origin = error.__cause__ or error
        cut = isinstance(origin, EOFError | struct.error | IndexError) or "truncat" in str(error).lower()
        raise SampleSkipped("truncated" if cut else "corrupt", str(error) or type(error).__name__) from error


def open_image(file: BinaryIO, max_pixels: int) -> Opened:
    """Open the image in ``file``, which must be seekable, and judge it by its header: its pixels are not decoded.

    Raises SampleSkipped (and whatever Pillow raises: see ``bad_bytes_skipped``).
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    kind = kind_of(head)
    if kind == "TIFF" and is_raw(head):
        raise SampleSkipped("unsupported", "camera raw (CR2) is not read here; convert it first")
    return _OPENERS.get(kind, _open_plain)(file, kind, max_pixels)


def open_whole(data: bytes, max_pixels: int) -> Opened:
    """The same for all of the bytes, which are checked for what decoders let pass: they fill up what is missing."""
    opened = open_image(BytesIO(data), max_pixels)
    opened.check(data)
    return opened


_DECODERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # MPO, too: its first image
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}


def _open_plain(file: BinaryIO, kind: str, max_pixels: int) -> Opened:
    image = _judged(_DECODERS[kind](file), max_pixels)
    declared_color.declare_plain(image)
    opened = _opened(image)
    if kind == "JPEG":
        opened.check, opened.draftable = partial(_check_jpeg, image), True
    return opened


def _open_gif(file: BinaryIO, kind: str, max_pixels: int) -> Opened:
    opened = _open_plain(file, kind, max_pixels)
    assert isinstance(opened.image, GifImagePlugin.GifImageFile)
    opened.load = partial(mending.partial_frame, opened.image, opened.image.tile[0].extents)
    return opened


def _open_tiff(file: BinaryIO, kind: str, max_pixels: int) -> Opened:
    opened = _open_plain(file, kind, max_pixels)
    assert isinstance(opened.image, TiffFile)
    opened.load = partial(mending.deep_grey, opened.image, opened.image.white, opened.image.inverted)
    return opened


def _open_webp(file: BinaryIO, kind: str, max_pixels: int) -> Opened:
    opened = _open_plain(file, kind, max_pixels)
    image = opened.image
    assert isinstance(image, WebPImagePlugin.WebPImageFile)

    def check(data: bytes) -> None:
        if riff.ends_in_zeros(data):
            raise SampleSkipped("truncated", "the pixels of this WebP end in zeros")
        box = riff.first_frame_box(data)
        if box is not None and image.mode == "RGB":  # with alpha, there is nothing around it
            opened.load = partial(mending.partial_frame, image, box)

    opened.check = check
    return opened


def _open_boxes(file: BinaryIO, kind: str, max_pixels: int) -> Opened:
    image = _judged(open_heif(file) if kind == "HEIF" else AvifImagePlugin.AvifImageFile(file), max_pixels)
    if not image.info.get("icc_profile"):
        file.seek(0)
        declared_color.declare_nclx(image, boxes.nclx(file.read()))
    else:
        declared_color.declare_plain(image)

    def check(data: bytes) -> None:
        if boxes.ends_in_zeros(data):
            raise SampleSkipped("truncated", f"the pixels of this {'HEIC' if kind == 'HEIF' else kind} end in zeros")

    opened = _opened(image)
    opened.check = check
    return opened


def _open_png(file: BinaryIO, kind: str, max_pixels: int) -> Opened:
    chunks = png.scan(file)
    image = _judged(PngImagePlugin.PngImageFile(png.for_size(file, chunks)), max_pixels)
    if chunks.exif is not None and "exif" not in image.info:
        image.info["exif"] = b"Exif\0\0" + chunks.exif
    declared_color.declare_png(image, chunks)

    def load() -> Image.Image:
        again = image if chunks.plain else PngImagePlugin.PngImageFile(png.for_pixels(file, chunks))
        declared_color.declare(again, image.info.get("icc_profile"))
        if chunks.depth == 16 and "transparency" in again.info:
            return mending.deep_transparency(again, partial(_png_low_bytes, file, chunks))
        return _loaded(again)

    opened = _opened(image)
    opened.load, opened.check = load, partial(png.check_whole, found=chunks)
    return opened


def _png_low_bytes(file: BinaryIO, chunks: png.Chunks) -> Image.Image:
    """The low bytes of 16-bit RGB samples: Pillow's decoder gives the high ones of what it takes for little-endian."""
    image = PngImagePlugin.PngImageFile(png.for_pixels(file, chunks))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    return _loaded(image)


def _open_jxl(file: BinaryIO, kind: str, max_pixels: int) -> Opened:
    data = file.read()
    size = jxl_size(data)
    _check_size(size, max_pixels)

    def load() -> Image.Image:
        decoded = decode_jxl(data)
        if not isinstance(decoded, bytes):
            declared_color.declare_plain(decoded)
            return decoded
        within = open_whole(decoded, max_pixels)
        image = within.load()
        return image.transpose(mending.TURNS[within.orientation]) if within.orientation != 1 else image

    return Opened(image=Image.new("L", (1, 1)), size=size, orientation=1, load=load)


_OPENERS = {
    "PNG": _open_png,
    "GIF": _open_gif,
    "TIFF": _open_tiff,
    "WEBP": _open_webp,
    "AVIF": _open_boxes,
    "HEIF": _open_boxes,
    "JXL": _open_jxl,
}


def _opened(image: ImageFile.ImageFile) -> Opened:
    orientation = _orientation(image)
    size = image.size if orientation >= 5 else image.size[::-1]
    return Opened(image=image, size=(size[0], size[1]), orientation=orientation, load=partial(_loaded, image))


def _judged(image: ImageFile.ImageFile, max_pixels: int) -> ImageFile.ImageFile:
    _check_size(image.size[::-1], max_pixels)
    image.decodermaxblock = 2**20  # the default of 64 KiB copies what is left over each time
    return image


def _check_jpeg(image: ImageFile.ImageFile, data: bytes) -> None:
    assert image.fp is not None
    if jpeg.ends_in_zeros(data, image.fp.tell()):
        raise SampleSkipped("truncated", "the JPEG ends in zeros, without its end-of-image marker")


def _check_size(size: tuple[int, ...], max_pixels: int) -> None:
    # Not Image.open: it judges sizes by a global limit, and answers through warnings.
    height, width = size
    if width * height > max_pixels:
        raise SampleSkipped("too_many_pixels", f"{height}x{width} pixels are more than the limit of {max_pixels}")


def _loaded(image: ImageFile.ImageFile) -> Image.Image:
    image.load()
    return image


def _orientation(image: Image.Image) -> int:
    if image.format in ("TIFF", "HEIF"):
        return 1  # these are turned as they are decoded
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return 1
    try:
        # Not image.getexif(): on a PNG that one decodes the pixels to look behind them.
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # broken EXIF says nothing against the pixels
        return 1
    return orientation if orientation in mending.TURNS else 1


def _unread_kind(file: BinaryIO) -> str | None:
    try:
        file.seek(0)
        return jpeg.unread_kind(file)
    except (OSError, ValueError):  # closed by now
        return None
