"""Any autoencoders on the same pixels, side by side: scores, sizes, time, memory and a picture.

``compare_images`` and its options are handed on lazily: importing the package loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import CompareOptions as CompareOptions
    from .comparison import Comparison as Comparison
    from .comparison import compare_images as compare_images

__all__ = ["CompareOptions", "Comparison", "compare_images"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.comparison"), name)
