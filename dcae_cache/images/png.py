"""What a PNG says beside its pixels: colour space, EXIF wherever it stands, and whether all of it is there.

Pillow reads the pixels. It is given the file without its texts, which it would inflate, refuse when they are long, and
keep: no text can stop a picture from being read, or cost memory.
Chunks as in the PNG specification, third edition (W3C, 2025). Knows nothing of what is done with the pixels.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from PIL import PngImagePlugin

from ..errors import SampleSkipped

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_MAX_KEPT_TEXT = 2**20  # inflated; EXIF and XMP are texts, too, in files of older programs
_MAX_PROFILE = 2**24  # inflated
_KEPT_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


@dataclass(slots=True)
class Chunks:
    """What stands in a PNG. ``head`` is the file up to its pixels, less what is left out; the pixels lie in
    [pixels_from, pixels_to) of the file. ``plain``: nothing was left out and nothing stands behind the pixels."""

    head: bytearray
    pixels_from: int = -1
    pixels_to: int = -1
    plain: bool = True
    depth: int = 8
    cicp: tuple[int, int, int, int] | None = None
    profile: bytes | None = None  # only one that Pillow would refuse for its size
    exif: bytes | None = None  # only from behind the pixels
    ended: bool = False


def scan(file: BinaryIO) -> Chunks:
    """Walk all chunks of a PNG; the pixels themselves are passed over. Raises SampleSkipped "unsupported"."""
    file.seek(len(_SIGNATURE))
    found = Chunks(bytearray(_SIGNATURE))
    while True:
        at = file.tell()
        head = file.read(8)
        if len(head) < 8 or not head[4:].isalpha():
            return found
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name == b"IEND":
            found.ended = True
            return found
        if name in (b"IDAT", b"fdAT"):
            file.seek(length + 4, 1)
            if name == b"IDAT" and found.pixels_to in (-1, at):
                found.pixels_from = at if found.pixels_from < 0 else found.pixels_from
                found.pixels_to = file.tell()
            continue
        body = file.read(length + 4)
        if found.pixels_from < 0:
            _take_in(found, name, body[:-4], head + body)
        else:
            found.plain = False
            if name == b"eXIf":
                found.exif = found.exif or body[:-4]


def _take_in(found: Chunks, name: bytes, body: bytes, whole: bytes) -> None:
    """A chunk in front of the pixels."""
    if name == b"CgBI":
        raise SampleSkipped(
            "unsupported", "PNG as Apple's Xcode rewrites it (CgBI) is not read here; convert it first"
        )
    if name == b"IHDR" and len(body) >= 9:
        found.depth = body[8]
    if name == b"cICP" and len(body) == 4:
        found.cicp = (body[0], body[1], body[2], body[3])
    if (name in _TEXTS and not _is_kept(name, body)) or (name == b"iCCP" and _took_profile(found, body)):
        found.plain = False
        return
    found.head += whole


def _is_kept(name: bytes, body: bytes) -> bool:
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _KEPT_TEXTS or len(body) > _MAX_KEPT_TEXT:
        return False
    if name == b"zTXt":
        return _inflated(rest[1:], _MAX_KEPT_TEXT) is not None
    if name == b"iTXt" and rest[:1] == b"\1":  # flag, method, language, translated keyword, text
        return _inflated(rest[2:].split(b"\0", 2)[-1], _MAX_KEPT_TEXT) is not None
    return True


def _took_profile(found: Chunks, body: bytes) -> bool:
    """Whether the profile is too large for Pillow, and so was inflated here."""
    packed = body.partition(b"\0")[2][1:]
    if _inflated(packed, PngImagePlugin.MAX_TEXT_CHUNK) is not None:
        return False
    found.profile = _inflated(packed, _MAX_PROFILE)
    if found.profile is None:
        raise SampleSkipped("unsupported", f"its ICC profile is larger than {_MAX_PROFILE >> 20} MiB")
    return True


def _inflated(packed: bytes, limit: int) -> bytes | None:
    """None if there are more than ``limit`` bytes in it; what there is, if it is broken."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, limit)
    except zlib.error:
        return b""
    return None if inflater.unconsumed_tail else data


def for_size(file: BinaryIO, found: Chunks) -> BinaryIO:
    """The file as Pillow is to read it for the size. Of one that is not plain that is its head, without pixels."""
    if found.plain or found.pixels_from < 0:
        file.seek(0)
        return file
    file.seek(found.pixels_from)
    return BytesIO(bytes(found.head) + file.read(8))


def for_pixels(file: BinaryIO, found: Chunks) -> BinaryIO:
    """The file as Pillow is to read it for the pixels."""
    if found.plain or found.pixels_from < 0:
        file.seek(0)
        return file
    file.seek(found.pixels_from)
    return BytesIO(b"".join((found.head, file.read(found.pixels_to - found.pixels_from), _END)))


def check_whole(data: bytes, found: Chunks) -> None:
    """Raise SampleSkipped "truncated" or "corrupt" where pixels are missing or changed that Pillow would make up."""
    zeros = not any(data[-16:])
    if zeros and not found.ended:
        raise SampleSkipped("truncated", "the PNG ends in zeros, without its end")
    view, at = memoryview(data), found.pixels_from
    while 0 <= at < found.pixels_to:
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise SampleSkipped("truncated", "the PNG ends within its pixels")
        if zlib.crc32(view[at + 4 : end]).to_bytes(4, "big") != view[end : end + 4]:
            raise SampleSkipped("corrupt", f"the checksum of the pixels at byte {at} is wrong")
        at = end + 4
