"""Who takes part in a comparison: all are found before the first is opened, and they are opened one at a time.

    opener = Opener(["taesd", "f32c32-mix"], lambda name: find_autoencoder(name, device, dtype, hub))
    opener.factors              # of those that could be had: known before any image is cropped
    opener.open("taesd")

Knows nothing of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..errors import ModelError
from ..models.autoencoder import Autoencoder, HubOptions, locate, open_autoencoder
from .side_by_side import free_memory


@dataclass(frozen=True, slots=True)
class Entrant:
    """One that was found: its factor, and how to put it on the device."""

    spatial_compression_ratio: int
    open: Callable[[], Autoencoder]


class Opener:
    """Finds the named ones in order; a ModelError of ``find`` is kept until that name is opened."""

    def __init__(self, names: Sequence[str], find: Callable[[str], Entrant]) -> None:
        self._found: dict[str, Entrant | ModelError] = {}
        for name in names:
            try:
                self._found[name] = find(name)
            except ModelError as error:
                self._found[name] = error

    @property
    def factors(self) -> list[int]:
        """The spatial compression ratios of those that were found."""
        return [found.spatial_compression_ratio for found in self._found.values() if isinstance(found, Entrant)]

    def open(self, name: str) -> Autoencoder:
        """The named one, with its weights on the device. Raises the ModelError it was not found for."""
        found = self._found[name]
        if isinstance(found, ModelError):
            raise found
        return found.open()


def find_autoencoder(name: str, device: torch.device, dtype: torch.dtype, hub: HubOptions) -> Entrant:
    """Find an autoencoder by name, downloading what it lacks. Raises what ``autoencoders.locate`` does."""
    located = locate(name, hub)
    factor = located.spatial_compression_ratio
    if factor is None:
        factor = open_autoencoder(located, device, dtype).spatial_compression_ratio
        free_memory()
    return Entrant(factor, partial(open_autoencoder, located, device, dtype))
