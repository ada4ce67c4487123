"""Which kind of image bytes are, by how they begin; and which suffixes such files have. Nothing is decoded here.

Knows nothing of pixels, sizes or sources.
"""

from __future__ import annotations

from ..errors import SampleSkipped

EXTRA_SUFFIXES = {".heic": "heif", ".heif": "heif", ".hif": "heif", ".jxl": "jxl"}  # read with that extra installed
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".avif"),
        *(".bmp", ".dib", ".tif", ".tiff", ".gif"),
        *EXTRA_SUFFIXES,
    }
)
HEAD_BYTES = 64  # of a file are enough to tell its kind

_READ = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\xff\x0a", "JXL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
)
_NOT_READ = (
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"DDS ", "DirectDraw (DDS)"),
    (b"qoif", "QOI"),
    (b"farbfeld", "farbfeld"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"II\xbc", "JPEG XR"),
    (b"\0\0\1\0", "Windows icon"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"gimp xcf", "GIMP"),
    (b"IIRO", "camera raw (ORF)"),
    (b"IIU\0", "camera raw (RW2)"),
    (b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (b"<svg", "SVG"),
    *((b"P%d%s" % (number, blank), "Netpbm") for number in range(1, 8) for blank in (b"\n", b" ", b"\r", b"\t")),
)
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"heif"}


def kind_of(head: bytes) -> str:
    """What bytes beginning with ``head`` are: JPEG, PNG, WEBP, AVIF, BMP, TIFF, GIF, HEIF or JXL.

    Raises SampleSkipped "empty", "unsupported" for a kind of image (or a video) that is not read here, naming it, and
    "not_an_image" for anything else.
    """
    if not head:
        raise SampleSkipped("empty", "there are no bytes")
    for signature, kind in _READ:
        if head.startswith(signature):
            return kind
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    for signature, kind in _NOT_READ:
        if head.startswith(signature):
            raise SampleSkipped("unsupported", f"{kind} is not read here; convert it first")
    raise SampleSkipped("not_an_image", f"it begins with {head[:12]!r}, which no image format read here does")


def looks_like_image(head: bytes) -> bool:
    """Whether ``kind_of`` knows the kind, read or not read here."""
    try:
        kind_of(head)
    except SampleSkipped as skipped:
        return skipped.reason == "unsupported"
    return True


def extra_missing(kind: str, extra: str) -> SampleSkipped:
    """What is raised for a kind of image whose extra is not installed."""
    return SampleSkipped("unsupported", f"{kind} is read with the extra {extra}: pip install 'dcae-cache[{extra}]'")


def _of_brands(head: bytes) -> str:
    """The kind of an ISO base media file, by its brands (the major one, a version, the compatible ones)."""
    end = min(max(int.from_bytes(head[:4], "big"), 12), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & _HEIF_BRANDS:
        return "HEIF"
    if b"crx " in brands:
        raise SampleSkipped("unsupported", "camera raw (CR3) is not read here; convert it first")
    if brands & {b"jp2 ", b"jpx ", b"jph "}:
        raise SampleSkipped("unsupported", "JPEG 2000 is not read here; convert it first")
    raise SampleSkipped("unsupported", f"a video or another ISO media file ({head[8:12]!r}) is not read here")
