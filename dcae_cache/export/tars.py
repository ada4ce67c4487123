"""Members of plain tars, and arrays as the bytes of .npy files: the same bytes for the same content.

Knows nothing of samples.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor


@contextmanager
def new_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar with USTAR headers alone: wids reads no other."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        yield tar


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file with no time and no owner."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def npy(tensor: Tensor) -> bytes:
    """The tensor as the bytes of an .npy file, row-major."""
    with io.BytesIO() as file:
        np.save(file, tensor.contiguous().numpy())
        return file.getvalue()
