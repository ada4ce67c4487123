"""The boxes of AVIF and HEIF files (ISO/IEC 14496-12 and 23008-12), as far as their colour space and their end go.

Knows nothing of pixels: the decoders have those.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_CONTAINERS_WITH_VERSION = 4  # bytes of version and flags in front of the content
_ZEROS = 32  # that many at the end of an image's data: none of the codecs writes so many
_CODED = (b"av01", b"hvc1")

Span = tuple[int, int]


def nclx(data: bytes) -> tuple[int, int, int, bool] | None:
    """Colour primaries, transfer characteristics, matrix coefficients and whether the range is full, as the ``colr``
    box of the primary item says them (numbers of ITU-T H.273); None where there is none."""
    try:
        return _nclx(data)
    except (struct.error, IndexError):  # broken boxes: the decoder will say so
        return None


def ends_in_zeros(data: bytes) -> bool:
    """Whether the data of a coded image ends in zeros, as in a file filled only in part."""
    try:
        return any(not any(data[end - _ZEROS : end]) for start, end in _image_spans(data) if end - start >= _ZEROS)
    except (struct.error, IndexError):
        return False


def _nclx(data: bytes) -> tuple[int, int, int, bool] | None:
    meta = _meta(data)
    if meta is None or b"iprp" not in meta or b"pitm" not in meta:
        return None
    at, _ = meta[b"pitm"]
    primary = _number(data, at + 4, 2 if data[at] == 0 else 4)
    properties = dict(_boxes(data, *meta[b"iprp"]))
    if b"ipco" not in properties:
        return None
    all_of_them = list(_boxes(data, *properties[b"ipco"]))
    for number in _associated(data, properties.get(b"ipma"), primary):
        if 1 <= number <= len(all_of_them):
            name, (start, end) = all_of_them[number - 1]
            if name == b"colr" and data[start : start + 4] == b"nclx" and end - start >= 11:
                primaries, transfer, matrix = struct.unpack_from(">3H", data, start + 4)
                return primaries, transfer, matrix, bool(data[start + 10] & 0x80)
    return None


def _associated(data: bytes, span: Span | None, item: int) -> list[int]:
    """The numbers (from 1) of the properties of an item."""
    if span is None:
        return []
    at = span[0]
    version, wide = data[at], data[at + 3] & 1
    count, at = _number(data, at + 4, 4), at + 8
    for _ in range(count):
        width = 2 if version < 1 else 4
        found = _number(data, at, width)
        num = data[at + width]
        at += width + 1
        size = 2 if wide else 1
        numbers = [_number(data, at + i * size, size) & (0x7FFF if wide else 0x7F) for i in range(num)]
        at += num * size
        if found == item:
            return numbers
        if at >= span[1]:
            break
    return []


def _image_spans(data: bytes) -> Iterator[Span]:
    """Where the data of the coded images lies in the file."""
    meta = _meta(data)
    if meta is None or b"iloc" not in meta or b"iinf" not in meta:
        return
    coded = set(_coded_items(data, meta[b"iinf"]))
    at, end = meta[b"iloc"]
    version, sizes = data[at], _number(data, at + 4, 2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    id_size = 2 if version < 2 else 4
    count, at = _number(data, at + 6, id_size), at + 6 + id_size
    for _ in range(count):
        if at >= end:
            return
        item, at = _number(data, at, id_size), at + id_size
        method = 0
        if version:
            method, at = _number(data, at, 2) & 15, at + 2
        base, at = _number(data, at + 2, base_size), at + 2 + base_size
        num, at = _number(data, at, 2), at + 2
        for _ in range(num):
            at += index_size
            offset, at = _number(data, at, offset_size), at + offset_size
            length, at = _number(data, at, length_size), at + length_size
            if item in coded and method == 0:
                yield base + offset, base + offset + length if length else len(data)


def _coded_items(data: bytes, span: Span) -> Iterator[int]:
    start, end = span
    first = start + (6 if data[start] == 0 else 8)
    for name, (at, _) in _boxes(data, first, end):
        if name == b"infe" and data[at] >= 2:
            width = 2 if data[at] == 2 else 4
            if data[at + 6 + width : at + 10 + width] in _CODED:
                yield _number(data, at + 4, width)


def _meta(data: bytes) -> dict[bytes, Span] | None:
    for name, (start, end) in _boxes(data, 0, len(data)):
        if name == b"meta":
            return dict(_boxes(data, start + _CONTAINERS_WITH_VERSION, end))
    return None


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, Span]]:
    while start + 8 <= min(end, len(data)):
        size, name = _number(data, start, 4), data[start + 4 : start + 8]
        head = 8
        if size == 1:
            size, head = _number(data, start + 8, 8), 16
        stop = end if size == 0 else start + size
        if size and size < head:
            return
        yield name, (start + head, min(stop, end))
        start = stop


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise IndexError("beyond the end")
    return int.from_bytes(data[at : at + size], "big")
