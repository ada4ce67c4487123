"""JPEGs that are not read here, named; and whether one has its end. Knows nothing of pixels."""

from __future__ import annotations

from typing import BinaryIO

_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_DIFFERENTIAL = {0xC5, 0xC6, 0xCD, 0xCE}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the markers that begin a frame (ITU-T T.81, table B.1)
_MAX_MARKERS = 10_000


def unread_kind(file: BinaryIO) -> str | None:
    """What is unusual about a JPEG that could not be decoded, if it is one of the kinds that few decoders read."""
    if file.read(2) != b"\xff\xd8":
        return None
    for _ in range(_MAX_MARKERS):
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF:
            return None
        if marker[1] == 0xFF:
            file.seek(-1, 1)
            continue
        length = int.from_bytes(file.read(2), "big")
        if marker[1] in _FRAMES:
            return _unusual(marker[1], file.read(6))
        if marker[1] == 0xDA or length < 2:
            return None
        file.seek(length - 2, 1)
    return None


def _unusual(marker: int, frame: bytes) -> str | None:
    if len(frame) < 6:
        return None
    bits, components = frame[0], frame[5]
    if bits != 8:
        return f"a JPEG of {bits}-bit samples"
    if marker in _LOSSLESS:
        return "a lossless JPEG"
    if marker in _DIFFERENTIAL:
        return "a hierarchical JPEG"
    if components not in (1, 3, 4):
        return f"a JPEG of {components} components"
    return None


def ends_in_zeros(data: bytes, start: int) -> bool:
    """Whether a JPEG whose scan begins at ``start`` ends in zeros, without its end-of-image marker."""
    return not any(data[-16:]) and data.rfind(b"\xff\xd9", start) < 0
