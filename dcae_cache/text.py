"""Values as people and as JSON read and write them. Knows nothing of what they stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def human_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def counted(number: int, what: str) -> str:
    """1, "part" -> "1 part"; 2000 -> "2,000 parts"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def without_infinity(value: Any) -> Any:
    """The same value with null in place of every float that is not finite: JSON has no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {key: without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def whole_number(text: str) -> int | None:
    """The number that ASCII digits spell; None for anything else: no sign, no point, no space, no other digits."""
    return int(text) if text.isascii() and text.isdigit() else None
