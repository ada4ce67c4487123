"""HEIC and other HEIF images through pillow-heif, which the extra ``heif`` installs. The only place that knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from PIL import ImageFile

from .formats import extra_missing


def open_heif(file: BinaryIO) -> ImageFile.ImageFile:
    """The primary image, upright, its pixels still to be decoded. SampleSkipped "unsupported" without the extra."""
    try:
        import pillow_heif
    except ImportError as error:
        raise extra_missing("HEIC", "heif") from error
    opener: Callable[[BinaryIO], ImageFile.ImageFile] = pillow_heif.HeifImageFile
    return opener(file)
