"""Values as people and as JSON read and write them. Knows nothing of what they stand for.

``printable`` is the one function through which text of unknown origin reaches a terminal or a page.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

MAX_JSON_DEPTH = 100  # of lists and objects in each other; more than that nobody means
# Control bytes, what turns the direction of writing around, line ends of other kinds, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def human_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def human_seconds(seconds: float) -> str:
    """45.2 -> "45 s"; 3700 -> "1 h 2 min"; 200000 -> "2 d 8 h"."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h"


def counted(number: int, what: str) -> str:
    """1, "part" -> "1 part"; 2000 -> "2,000 parts"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with everything that could steer a terminal or a page written out: ESC becomes the four characters
    ``\x1b``, a line end ``\n``. Characters in ``keep`` stay as they are."""

    def escaped(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")

    return _UNPRINTABLE.sub(escaped, text)


def printable_json(text: str) -> str:
    """The same for JSON: in its own spelling, and with the line ends it was set with."""
    return _UNPRINTABLE.sub(lambda match: "\n" if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def parse_json(text: str | bytes) -> Any:
    """``json.loads`` of text that somebody else wrote. Raises ValueError, too, for what is nested absurdly deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deep") from None
    if _count_openings(text) <= MAX_JSON_DEPTH:
        return value
    level, depth = _items([value]), 0
    while level:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"lists or objects are nested more than {MAX_JSON_DEPTH} deep")
        level = list(chain.from_iterable(map(_items, level)))
    return value


def _count_openings(text: str | bytes) -> int:
    """How deep lists and objects can be nested at most."""
    return text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")


def _items(value: Any) -> Any:
    """The lists and objects in a list or an object."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, dict | list)]


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


def stamp_of(text: str) -> int:
    """A number that changes with ``text``, in place of a modification time where a version is told otherwise: by an
    ETag, a fingerprint, a row's values. 63 bits of its sha256, as entries hold it (``Entry.mtime_ns``)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big") >> 1
