"""Which colour space a file declares, out of all the places where it may: one ICC profile, or none for sRGB.

The order, the first that says something being followed:
PNG: cICP, iCCP, sRGB, gAMA and cHRM, EXIF. AVIF and HEIC: ICC profile, nclx, EXIF. All others: ICC profile, EXIF.
Knows nothing of pixels.
"""

from __future__ import annotations

from PIL import Image

from ..errors import SampleSkipped
from . import spaces
from .png import Chunks

_EXIF_IFD, _INTEROP_IFD = 0x8769, 0xA005
_COLOR_SPACE, _INTEROP_INDEX = 0xA001, 1
_SRGB = 1
_UNSPECIFIED = 2


def declare(image: Image.Image, profile: bytes | None) -> None:
    """Make ``profile`` the one that ``image`` is converted from; None: it is sRGB."""
    image.info.pop("icc_profile", None)
    if profile is not None:
        image.info["icc_profile"] = profile


def declare_plain(image: Image.Image) -> None:
    """JPEG, WebP, TIFF, GIF, BMP, JPEG XL. Raises SampleSkipped "unsupported" for high dynamic range, as all here."""
    profile = image.info.get("icc_profile")
    if profile:
        spaces.refuse_hdr_profile(profile)
    elif _is_adobe_rgb(image):
        declare(image, spaces.adobe_rgb())


def declare_png(image: Image.Image, chunks: Chunks) -> None:
    info = image.info
    if chunks.cicp is not None:
        primaries, transfer, matrix, full_range = chunks.cicp
        if matrix != 0:
            raise SampleSkipped("unsupported", f"its cICP chunk says matrix {matrix}; a PNG's is 0 (RGB)")
        declare(image, spaces.of_code_points(primaries, transfer, full_range == 1))
        return
    if chunks.profile is not None:
        info["icc_profile"] = chunks.profile
    if not info.get("icc_profile"):
        if "srgb" in info:
            return
        if "gamma" in info or "chromaticity" in info:
            declare(image, spaces.of_gamma(info.get("gamma"), info.get("chromaticity")))
            return
    declare_plain(image)


def declare_nclx(image: Image.Image, named: tuple[int, int, int, bool] | None) -> None:
    """AVIF and HEIC without an ICC profile; ``named``: what their nclx says."""
    if named is None or named[:2] == (_UNSPECIFIED, _UNSPECIFIED):
        declare_plain(image)
    else:
        declare(image, spaces.of_code_points(named[0], named[1], full_range=True))  # the decoder has widened it


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF says Adobe RGB, in the way of DCF 2.0: interoperability index R03, and not sRGB."""
    raw = image.info.get("exif")
    if not isinstance(raw, bytes) or b"R03" not in raw:  # most have no such thing, and parsing takes time
        return False
    try:
        exif = Image.Image.getexif(image)
        index = exif.get_ifd(_INTEROP_IFD).get(_INTEROP_INDEX)
        color_space = exif.get_ifd(_EXIF_IFD).get(_COLOR_SPACE)
    except Exception:  # broken EXIF says nothing against the pixels
        return False
    return isinstance(index, str) and index.rstrip("\0 ") == "R03" and color_space != _SRGB
