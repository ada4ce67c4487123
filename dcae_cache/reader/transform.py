"""What a piece that changes batches is. The pieces themselves are in transforms.py and captions.py.

Knows nothing of caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import Draws


class Transform:
    """Changes whole batches. Random choices come from ``draws``, and so follow from seed, epoch and sample alone.

    ``columns``: what it needs beside the latents; columns are read for it where the dataset doesn't give them anyway.
    """

    columns: tuple[str, ...] = ()

    def check(self, dataset: Any) -> None:
        """Raises CacheError or UsageError where the dataset lacks what the piece needs."""

    def mirrored(self, draws: Draws) -> NDArray[np.bool_] | None:
        """Which samples' latents are to be those of the mirrored image; None: whatever the dataset gives."""
        return None

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        """The batch, changed: "latents" [N, c, h, w] and columns as the dataset gives them."""
        return batch
