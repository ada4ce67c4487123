"""JPEG XL images through pillow-jxl-plugin, which the extra ``jxl`` installs. The only place that knows it.

The plugin decodes as soon as it opens, so the size is read here, from the head of the codestream (ISO/IEC 18181-1,
annex D), and can be judged first.
"""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO

from PIL import Image

from ..errors import SampleSkipped
from .formats import extra_missing

_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_SIZE_BITS = (9, 13, 18, 30)


def jxl_size(data: bytes) -> tuple[int, int]:
    """Upright (height, width), from the header. Raises SampleSkipped "unsupported" without the extra."""
    if find_spec("pillow_jxl") is None:
        raise extra_missing("JPEG XL", "jxl")
    bits = _Bits(_codestream(data))
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    width = height * _RATIOS[ratio][0] // _RATIOS[ratio][1] if ratio else _side(bits, small)
    all_default = bits.take(1)
    turned = not all_default and bits.take(1) and bits.take(3) >= 4  # orientations 5 to 8, stored less 1
    return (width, height) if turned else (height, width)


def decode_jxl(data: bytes) -> Image.Image | bytes:
    """The pixels of the first frame, upright; or, of a JPEG that was packed losslessly, that JPEG."""
    try:
        from pillow_jxl import Decoder
    except ImportError as error:
        raise extra_missing("JPEG XL", "jxl") from error
    is_jpeg, info, pixels, profile, _ = Decoder(num_threads=0)(data)
    if is_jpeg:
        return bytes(pixels)
    if info.mode not in ("L", "LA", "RGB", "RGBA", "I;16"):
        raise SampleSkipped("unsupported", f"JPEG XL of mode {info.mode} has no defined white")
    image = Image.frombytes(info.mode, (info.width, info.height), bytes(pixels))
    if profile:
        image.info["icc_profile"] = bytes(profile)
    return image


def _codestream(data: bytes) -> bytes:
    """The beginning of the codestream: of a bare one, or of that in a container's boxes."""
    if data.startswith(b"\xff\x0a"):
        return data[2:66]
    file = BytesIO(data)
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(file.read(8), "big") - 8
        if head[4:] in (b"jxlc", b"jxlp"):
            start = file.tell() + (4 if head[4:] == b"jxlp" else 0)
            if data[start : start + 2] == b"\xff\x0a":
                return data[start + 2 : start + 66]
        if size < 8:
            break
        file.seek(size - 8, 1)
    raise SampleSkipped("corrupt", "there is no codestream in this JPEG XL file")


def _side(bits: _Bits, small: int) -> int:
    return 8 * (bits.take(5) + 1) if small else 1 + bits.take(_SIZE_BITS[bits.take(2)])


class _Bits:
    """Little-endian bits, as the codestream has them."""

    def __init__(self, data: bytes) -> None:
        self._left = int.from_bytes(data, "little")
        self._num_left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._num_left:
            raise SampleSkipped("truncated", "the JPEG XL file ends within its header")
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        self._num_left -= count
        return value
