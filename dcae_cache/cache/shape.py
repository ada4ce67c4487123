"""Is what a file says of the form that it must have? For JSON that somebody else may have written, on purpose or not.

    check_shape(index, {"totals": {"num_parts": COUNT}}, "index.json")      # raises ValueError naming the place

Knows nothing of what the values mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
Shape = Check | type | Mapping[str, "Shape"] | list["Shape"]


def COUNT(value: Any) -> bool:  # noqa: N802 - stands among types in a shape
    """A whole number from 0 to what 63 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def NUMBER(value: Any) -> bool:  # noqa: N802
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def between(first: int, last: int) -> Check:
    """A whole number of that range."""
    return lambda value: COUNT(value) and first <= value <= last


def optional(shape: Shape) -> Check:
    """null, or a value of that shape."""
    return lambda value: value is None or not _wrong(value, shape, "")


def one_of(*values: Any) -> Check:
    return lambda value: any(value == known and type(value) is type(known) for known in values)


def matching(pattern: str) -> Check:
    """A string that the pattern describes as a whole."""
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def mapping_of(key: Check, shape: Shape) -> Check:
    """An object whose names and values are all of that kind."""
    return lambda value: (
        isinstance(value, Mapping) and all(key(name) and not _wrong(item, shape, "") for name, item in value.items())
    )


def check_shape(value: Any, shape: Shape, name: str) -> None:
    """Raise ValueError for the first place where the value is of another shape. Names that the shape doesn't know are
    of a later release, and pass."""
    wrong = _wrong(value, shape, name)
    if wrong:
        raise ValueError(wrong)


def _wrong(value: Any, shape: Shape, place: str) -> str | None:
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return f"{place} is {_shown(value)}, not an object"
        for name, inner in shape.items():
            if name not in value:
                return f"{place}.{name} is missing"
            if wrong := _wrong(value[name], inner, f"{place}.{name}"):
                return wrong
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is {_shown(value)}, not a list"
        wrongs = (_wrong(item, shape[0], f"{place}[{number}]") for number, item in enumerate(value))
        return next((wrong for wrong in wrongs if wrong), None)
    right = isinstance(value, shape) if isinstance(shape, type) else shape(value)
    return None if right else f"{place} is {_shown(value)}, which it can't be"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
