"""What a format gives: entries for a plan, and the samples they stand for. Knows nothing of any one format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CacheError, one_line
from ..records import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """One sample as it was found: ``latents`` [c, h, w] of any float dtype, ``mirrored`` those of the mirrored image.
    ``height`` and ``width`` are the original image's in pixels, where known."""

    latents: Tensor
    mirrored: Tensor | None = None
    label: str | None = None
    caption: str | None = None
    height: int | None = None
    width: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Importer(ABC):
    """One format, in a folder. Raises CacheError for files that aren't of it."""

    name: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def with_mirrored(self) -> bool:
        """Whether samples come with the latents of mirrored images. Known before the first entry is listed."""
        return False

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Every sample, in order: a unique key, and where ``read`` finds it."""

    @abstractmethod
    def read(self, entries: Sequence[Entry]) -> Iterator[Incoming]:
        """The samples of these entries, in their order."""


def load_npy(file: Any, where: str) -> Tensor:
    """The latents in an .npy file, opened or named: [c, h, w], also where they are stored as [1, c, h, w]."""
    try:
        array: NDArray[Any] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(f"{where} can't be read as .npy: {one_line(error)}.") from error
    if array.dtype.kind != "f":
        raise CacheError(f"{where} holds {array.dtype}, expected floating-point latents.")
    latents = torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))
    return latents[0] if latents.ndim == 4 and len(latents) == 1 else latents


def entry_of(key: str, location: str, path: Path, num_bytes: int | None = None) -> Entry:
    """An entry whose size and time are those of a file; ``num_bytes``: where it is one of several in it."""
    found = path.stat()
    return Entry(key, location, found.st_size if num_bytes is None else num_bytes, found.st_mtime_ns)
