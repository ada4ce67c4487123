"""Turn an image dataset into DC-AE latents once, before weeks of training.

Names are loaded on first use, so that ``import dcae_cache`` and ``dcae-cache --help`` don't pay for torch.
docs/python.md is their reference.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .config import EncodeConfig as EncodeConfig
    from .config import RunOptions as RunOptions
    from .encode.pipeline import encode_dataset as encode_dataset
    from .errors import DCAECacheError as DCAECacheError
    from .models.dcae import DCAE as DCAE
    from .reader.dataset import LatentDataset as LatentDataset
    from .reader.loader import LatentLoader as LatentLoader
    from .reader.mixing import MixedDataset as MixedDataset
    from .reader.sampler import BucketBatchSampler as BucketBatchSampler
    from .reader.selection import Selection as Selection
    from .sources.base import SourceOptions as SourceOptions
    from .verify.checks import verify_cache as verify_cache

__all__ = [
    "DCAE",
    "BucketBatchSampler",
    "DCAECacheError",
    "EncodeConfig",
    "LatentDataset",
    "LatentLoader",
    "MixedDataset",
    "RunOptions",
    "Selection",
    "SourceOptions",
    "__version__",
    "encode_dataset",
    "verify_cache",
]

_HOME = {
    "BucketBatchSampler": "reader.sampler",
    "DCAE": "models.dcae",
    "DCAECacheError": "errors",
    "EncodeConfig": "config",
    "LatentDataset": "reader.dataset",
    "LatentLoader": "reader.loader",
    "MixedDataset": "reader.mixing",
    "RunOptions": "config",
    "Selection": "reader.selection",
    "SourceOptions": "sources.base",
    "encode_dataset": "encode.pipeline",
    "verify_cache": "verify.checks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
