"""Decoded pixels put right where Pillow's decoders leave them short: deep samples and frames that fill only a part.

Knows nothing of files' bytes, colour spaces or buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

TURNS = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP = 2**22  # pixels worked on at once, whatever the size of the image


def strips(image: Image.Image) -> Iterator[tuple[int, int]]:
    """(top, bottom) of each strip of an image, so that what is made of it never needs much memory at once."""
    height = max(_STRIP // max(image.width, 1), 1)
    for top in range(0, image.height, height):
        yield top, min(top + height, image.height)


def from_16_bits(image: Image.Image, white: int = 65535, inverted: bool = False) -> Image.Image:
    """Mode I;16 as mode L: value / white * 255, rounded, halves up. ``inverted``: 0 is white, ``white`` black."""
    out = Image.new("L", image.size)
    for top, bottom in strips(image):
        values = np.asarray(image.crop((0, top, image.width, bottom))).astype(np.uint32)
        if inverted:
            values = white - np.minimum(values, white)
        levels = np.minimum((values * 255 + white // 2) // white, 255)
        out.paste(Image.fromarray(levels.astype(np.uint8)), (0, top))
    return _with_info(out, image)


def deep_grey(image: ImageFile.ImageFile, white: int, inverted: bool) -> Image.Image:
    """The pixels of a TIFF. Of 16-bit grey, as mode L; ``white``, ``inverted``: as for ``from_16_bits``."""
    image.load()
    return from_16_bits(image, white, inverted) if image.mode.startswith("I;16") else image


def partial_frame(image: ImageFile.ImageFile, box: tuple[int, int, int, int] | None) -> Image.Image:
    """The pixels of an image whose first frame lies in ``box``: what it leaves free is white."""
    image.load()
    if box is None or box == (0, 0, *image.size) or "transparency" in image.info:
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image.crop(box).convert("RGB"), box)
    return _with_info(white, image)


def deep_transparency(image: ImageFile.ImageFile, low_bytes: Callable[[], Image.Image]) -> Image.Image:
    """The pixels of a 16-bit PNG with a transparent colour, as LA or RGBA. The colour counts with all its 16 bits;
    ``low_bytes`` gives the lower 8 of an RGB image, of which Pillow keeps the higher ones."""
    key = image.info.pop("transparency")
    image.load()
    alpha = Image.new("L", image.size)
    if image.mode.startswith("I;16"):
        for top, bottom in strips(image):
            values = np.asarray(image.crop((0, top, image.width, bottom)))
            alpha.paste(_opaque(values != key), (0, top))
        return _with_info(Image.merge("LA", (from_16_bits(image), alpha)), image)
    low = low_bytes()
    for top, bottom in strips(image):
        area = (0, top, image.width, bottom)
        values = np.asarray(image.crop(area)).astype(np.uint16) * 256 + np.asarray(low.crop(area))
        alpha.paste(_opaque((values != np.array(key, dtype=np.uint16)).any(axis=-1)), (0, top))
    image.putalpha(alpha)
    return image


def _opaque(where: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(where.astype(np.uint8) * 255)


def _with_info(image: Image.Image, origin: Image.Image) -> Image.Image:
    """``image`` with what ``origin`` says beside its pixels, less a transparent colour: it is done with."""
    image.info = {name: value for name, value in origin.info.items() if name != "transparency"}
    return image
