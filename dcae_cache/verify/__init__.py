"""Is a cache right? Files against hashes, stored latents against their images and fresh ones; and the report on it.

``verify_cache`` and its options are handed on lazily: importing the package loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checks import VerifyOptions as VerifyOptions
    from .checks import VerifyReport as VerifyReport
    from .checks import verify_cache as verify_cache

__all__ = ["VerifyOptions", "VerifyReport", "verify_cache"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.checks"), name)
