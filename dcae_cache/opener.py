"""Several autoencoders by name: all are found before the first is opened, and they are opened one at a time.

Knows nothing of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .autoencoders import Autoencoder, HubOptions, Located, locate, open_autoencoder
from .errors import ModelError
from .standing import free_memory


class Opener:
    """Finds the named autoencoders, downloading what they lack. ``factors`` are the spatial compression ratios of
    those that could be had; ``open`` raises ModelError for the others."""

    def __init__(self, names: Sequence[str], device: torch.device, dtype: torch.dtype, hub: HubOptions) -> None:
        self._device, self._dtype = device, dtype
        self._found: dict[str, Located | ModelError] = {}
        self.factors: list[int] = []
        for name in names:
            try:
                self._found[name] = located = locate(name, hub)
                factor = located.spatial_compression_ratio
                if factor is None:
                    factor = open_autoencoder(located, device, dtype).spatial_compression_ratio
                    free_memory()
                self.factors.append(factor)
            except ModelError as error:
                self._found[name] = error

    @property
    def failed(self) -> list[str]:
        """The names that could not be had."""
        return [name for name, found in self._found.items() if isinstance(found, ModelError)]

    def open(self, name: str) -> Autoencoder:
        """The named one, with its weights on the device."""
        found = self._found[name]
        if isinstance(found, ModelError):
            raise found
        return open_autoencoder(found, self._device, self._dtype)
