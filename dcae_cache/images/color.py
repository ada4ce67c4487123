"""Colours: whatever a decoder gives, as 8-bit sRGB without alpha.

Two steps, so that the costly one runs on the small image: ``flatten`` gives grey or RGB pixels in the image's own
colour space, and the transform that is still to be applied; ``to_srgb`` applies it after resizing.
Knows nothing of files, sizes or crops.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ..errors import SampleSkipped
from .mending import from_16_bits, strips

_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


def flatten(image: Image.Image) -> tuple[Image.Image, ImageCms.ImageCmsTransform | None]:
    """A loaded image of any mode as mode L or RGB, and the transform to sRGB that remains (None: it is sRGB).

    16-bit grey is scaled (rounded v / 257), not clipped; 16-bit colour keeps its high byte, as Pillow decodes it.
    Alpha, or a transparent colour, is composited on white. CMYK goes through its profile, or else the plain formula.
    Raises SampleSkipped "unsupported" for pixels without a defined range (32-bit integers, floats).
    """
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = from_16_bits(image)
    if image.mode in ("I", "F"):
        raise SampleSkipped("unsupported", f"mode {image.mode} pixels (32-bit) have no defined white")
    if image.has_transparency_data:
        return _on_white(image, profile)
    if image.mode == "1":
        return image.convert("L"), None
    if image.mode in ("CMYK", "LAB"):
        # These can't be averaged and then converted: L*a*b* is signed, and ink mixes by products.
        return _apply(image, srgb_transform(profile, image.mode)), None
    if image.mode not in ("L", "RGB") or (image.mode == "L" and srgb_transform(profile, "RGB")):
        image = image.convert("RGB")  # a grey image may carry a profile made for colour, and its tones need it
    return image, srgb_transform(profile, image.mode)


def to_srgb(pixels: NDArray[np.uint8], transform: ImageCms.ImageCmsTransform | None) -> NDArray[np.uint8]:
    """uint8 [height, width, 1 or 3] with the transform of ``flatten`` applied: uint8 [height, width, 3], sRGB."""
    if transform is not None:
        bands = [Image.fromarray(pixels[..., band]) for band in range(pixels.shape[2])]
        image = bands[0] if len(bands) == 1 else Image.merge("RGB", bands)
        return np.array(_apply(image, transform))
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


@lru_cache(maxsize=32)
def srgb_transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From an ICC profile to sRGB, relative colorimetric with black point compensation; safe to share among threads.

    None where nothing is to be done: no profile, a broken one, one for another kind of pixels, or one that is sRGB
    under another name (it moves no colour by more than one level).
    """
    if profile is None and mode != "LAB":
        return None
    try:
        source = ImageCms.createProfile("LAB") if profile is None or mode == "LAB" else _opened(profile, mode)
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.HIGHRESPRECALC,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if mode in ("L", "RGB") and _changes_nothing(transform, mode) else transform


def _opened(profile: bytes, mode: str) -> ImageCms.ImageCmsProfile:
    opened = ImageCms.ImageCmsProfile(BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space != _PROFILE_SPACES[mode]:
        raise ValueError(f"a {space} profile on {mode} pixels")
    return opened


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        probe = levels[:, None]
    else:
        probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 1, 3)
    image = Image.fromarray(probe)
    moved = np.asarray(_apply(image, transform), dtype=np.int16)
    return bool(np.abs(moved - np.asarray(image.convert("RGB"), dtype=np.int16)).max() <= 1)


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    if transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None only for inPlace=True
    return converted


def _on_white(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, ImageCms.ImageCmsTransform | None]:
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    transform = srgb_transform(profile, mode)
    if _is_opaque(image):
        return _converted(image, mode), transform
    # The white is sRGB's, so the colours must be, too, before they are mixed with it.
    white = Image.new("RGB", image.size, "white")
    for top, bottom in strips(image):
        strip = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white.paste(_apply(strip.convert(mode), transform), (0, top), mask=strip.getchannel("A"))
    return white, None


def _is_opaque(image: Image.Image) -> bool:
    areas = ((0, top, image.width, bottom) for top, bottom in strips(image))
    return all(image.crop(area).convert("RGBA").getchannel("A").getextrema() == (255, 255) for area in areas)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """In ``mode``, its alpha dropped, strip by strip."""
    out = Image.new(mode, image.size)
    for top, bottom in strips(image):
        out.paste(image.crop((0, top, image.width, bottom)).convert("RGBA").convert(mode), (0, top))
    return out
