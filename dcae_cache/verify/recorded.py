"""What a table records of a sample, held against what its source says now. Works on rows; knows nothing of files.

Captions, labels and attributes may be edited on purpose: those columns can be left out of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..records import Row
from ..urls import without_secrets

EDITABLE = ("caption", "label", "attributes")
SIZES = ("height", "width", "source_bytes")
PLACES = ("source", "shard")
RECORDED = (*EDITABLE, *SIZES, *PLACES)
_SHOWN = 60  # characters of a value


def differences(recorded: Mapping[str, Any], now: Row, *, edited: Collection[str], moved: bool) -> Iterator[str]:
    """Each column whose recorded value is not the source's, as the end of a sentence on the sample.

    ``recorded``: the columns RECORDED, missing text as "". ``edited``: columns that were changed on purpose.
    ``moved``: the source lies elsewhere than it did, so that only names, not whole places, can agree.
    """
    for name in RECORDED:
        then, value = recorded[name] or None, getattr(now, name) or None
        if name in edited:
            continue
        if name == "source":
            then, value = (_place(str(place or ""), moved) for place in (then, value))
        if name == "attributes" and then is not None:
            then = without_secrets(then)
        if then != value:
            yield f"its {name} is recorded as {_shown(then)}, its source says {_shown(value)}"


def _place(text: str, moved: bool) -> str:
    text = without_secrets(text)
    return (text.rpartition("#")[2] if "#" in text else text.rpartition("/")[2]) if moved else text


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
