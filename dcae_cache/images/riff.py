"""The chunks of a WebP file (RFC 9649), as far as its end and its first frame go. Knows nothing of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

from PIL import WebPImagePlugin

_ZEROS = 32  # that many at the end of an image's data call for a closer look

Box = tuple[int, int, int, int]  # left, top, right, bottom


def ends_in_zeros(data: bytes) -> bool:
    """Whether the first frame's data ends in zeros that stand for nothing: those of a file filled only in part.

    A flat picture may end in many zeros, too, if it is lossy, and needs them all: without half of them it can't be
    decoded. Made-up zeros are far more than the rest of a picture needs. (A lossless one says runs in few bits.)
    """
    for name, start, end in _first_frame(data):
        if name in (b"VP8 ", b"VP8L"):
            zeros = end - start - len(data[start:end].rstrip(b"\0"))
            return zeros >= _ZEROS and (name == b"VP8L" or _decodes(data[start : end - zeros // 2]))
    return not any(data[-_ZEROS:])


def _decodes(image: bytes) -> bool:
    image += bytes(len(image) % 2)
    chunk = b"WEBPVP8 " + len(image).to_bytes(4, "little") + image
    try:
        WebPImagePlugin.WebPImageFile(BytesIO(b"RIFF" + len(chunk).to_bytes(4, "little") + chunk)).load()
    except Exception:  # whatever a decoder raises means that it couldn't
        return False
    return True


def first_frame_box(data: bytes) -> Box | None:
    """Where on the canvas the first frame of an animation lies; None for a still image."""
    for name, start, end in _chunks(data, 12, len(data)):
        if name == b"ANMF" and end - start >= 16:
            left, top, width, height = (
                int.from_bytes(data[start + i : start + i + 3], "little") for i in (0, 3, 6, 9)
            )
            return 2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1
    return None


def _first_frame(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    for name, start, end in _chunks(data, 12, len(data)):
        if name == b"ANMF":
            yield from _chunks(data, start + 16, end)
            return
        yield name, start, end


def _chunks(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of each."""
    while start + 8 <= end:
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        stop = start + 8 + size
        yield data[start : start + 4], start + 8, min(stop, end)
        start = stop + size % 2
