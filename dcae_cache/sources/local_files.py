"""Whole images read from local files, by any process. Knows nothing of folders, captions or pixels."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import TRANSIENT, SampleSkipped
from ..records import ImageFile
from .base import too_large


def read_image_file(file: ImageFile) -> bytes:
    """All bytes of the file. Raises SampleSkipped where it is gone, can't be read or is too large, and OSError where
    a network file system fails for the moment."""
    with open_image_file(Path(file.path), file.max_bytes) as opened:
        return read_whole(opened, file.name, file.max_bytes)


def read_whole(opened: BinaryIO, name: str, max_bytes: int) -> bytes:
    """All bytes of what was opened; SampleSkipped where they are more than ``max_bytes``: it has grown meanwhile."""
    data = opened.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise too_large(name, None, max_bytes)
    return data


def open_image_file(path: Path, max_bytes: int) -> BinaryIO:
    """Open a regular file of no more than ``max_bytes``. Anything else is refused before it is opened: a pipe would
    block for ever."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise SampleSkipped("unreadable", "not a regular file")
        if status.st_size > max_bytes:
            raise too_large(path.name, status.st_size, max_bytes)
        return path.open("rb")
    except FileNotFoundError as error:
        raise SampleSkipped("missing", "the file is gone, or a link that leads nowhere") from error
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        raise SampleSkipped("unreadable", error.strerror or str(error)) from error
