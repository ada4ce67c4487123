"""TIFF files that Pillow reads wrongly or not at all: read rightly here, or refused by name.

Knows nothing of colours or sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import ImageFile, TiffImagePlugin

from ..errors import SampleSkipped

_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SUB_IFDS = 254, 258, 259, 262, 330
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _DNG = 338, 339, 50706
_COMPRESSIONS = {
    1: "none",
    2: "CCITT",
    3: "CCITT group 3",
    4: "CCITT group 4",
    5: "LZW",
    6: "JPEG",
    7: "JPEG",
    8: "deflate",
    32771: "none",
    32773: "PackBits",
    32946: "deflate",
    34925: "LZMA",
    50000: "Zstandard",
}
_UNREAD_COMPRESSIONS = {
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "JPEG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_PHOTOMETRICS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "L*a*b*"}


class TiffFile(TiffImagePlugin.TiffImageFile):
    """Pillow's, without its errors. ``white``: the value of white in 16-bit modes; ``inverted``: there it is 0.

    Raises SampleSkipped "unsupported" for what can't be read rightly."""

    white = 65535
    inverted = False

    def _setup(self) -> None:
        tags: Any = self.tag_v2
        bits = _numbers(tags.get(_BITS, 1))
        self._refuse(tags, bits)
        if bits[:1] in ((12,), (16,)) and len(bits) == 1:
            self.white = 2 ** bits[0] - 1
            if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow would not turn it round, or not know it
                self.inverted = True
                tags[_PHOTOMETRIC] = _BLACK_IS_ZERO
        try:
            super()._setup()
        except SyntaxError as error:
            if "unknown pixel mode" in str(error):
                raise SampleSkipped("unsupported", f"{_described(tags, bits)} is not read here") from error
            raise
        if self._planar_configuration == 2 and max(bits) > 8 and not self.use_load_libtiff:
            self._leave_to_libtiff(tags, bits)

    def _leave_to_libtiff(self, tags: Any, bits: Sequence[int]) -> None:
        """Pillow's own decoder takes every plane for 8 bits; libtiff's knows better."""
        if self.mode not in ("RGB", "RGBA") or _numbers(tags.get(_EXTRA_SAMPLES, 2)) != (2,):
            raise SampleSkipped("unsupported", f"{_described(tags, bits)} plane by plane is not read here")
        self.use_load_libtiff = True
        args = (f"{self.mode};16N", False, self.tag_v2.offset)
        self.tile = [ImageFile._Tile("libtiff", (0, 0, *self._tile_size), 0, args)]

    def _refuse(self, tags: Any, bits: Sequence[int]) -> None:
        compression = tags.get(_COMPRESSION, 1)
        if compression not in _COMPRESSIONS:
            name = _UNREAD_COMPRESSIONS.get(compression, f"compression {compression}")
            raise SampleSkipped("unsupported", f"a TIFF compressed with {name} is not read here")
        if _DNG in tags or (tags.get(_SUBFILE, 0) & 1 and _SUB_IFDS in tags):
            raise SampleSkipped("unsupported", "camera raw (DNG, NEF, ARW) is not read here; convert it first")
        if tags.get(_PHOTOMETRIC, 0) not in _PHOTOMETRICS:
            raise SampleSkipped("unsupported", f"a TIFF of photometric kind {tags[_PHOTOMETRIC]} is not read here")
        formats = set(_numbers(tags.get(_SAMPLE_FORMAT, 1)))
        if formats - {1, 4}:
            raise SampleSkipped("unsupported", f"{_described(tags, bits)} has no defined white")


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)


def _described(tags: Any, bits: Sequence[int]) -> str:
    kinds = {1: "integer", 2: "signed integer", 3: "float", 5: "complex", 6: "complex"}
    kind = kinds.get(_numbers(tags.get(_SAMPLE_FORMAT, 1))[0], "unknown")
    color = _PHOTOMETRICS.get(tags.get(_PHOTOMETRIC, 0), "unknown")
    return f"a TIFF of {'+'.join(map(str, bits))}-bit {kind} samples ({color})"


def is_raw(head: bytes) -> bool:
    """Whether a TIFF is Canon's raw format of the second kind."""
    return head[8:11] == b"CR\x02"
