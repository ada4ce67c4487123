"""Turn an image dataset into DC-AE latents once, before weeks of training.

Names are loaded on first use, so that ``import dcae_cache`` and ``dcae-cache --help`` don't pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .encode.pipeline import encode_dataset as encode_dataset
    from .models.dcae import DCAE as DCAE
    from .reader.dataset import BucketBatchSampler as BucketBatchSampler
    from .reader.dataset import LatentDataset as LatentDataset

__all__ = ["DCAE", "BucketBatchSampler", "LatentDataset", "__version__", "encode_dataset"]

_HOME = {
    "DCAE": "models.autoencoder",
    "encode_dataset": "pipeline",
    "BucketBatchSampler": "reader",
    "LatentDataset": "reader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
