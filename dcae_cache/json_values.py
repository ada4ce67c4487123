"""Values as JSON has them. Knows nothing of what they mean."""

from __future__ import annotations

import math
from typing import Any


def without_infinity(value: Any) -> Any:
    """The same value with null in place of every float that is not finite: JSON has no infinity and no NaN."""
    if isinstance(value, dict):
        return {key: without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
