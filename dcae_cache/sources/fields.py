"""Which of a sample's fields is its caption, which its label, and what is left as attributes.

The same rule for JSON beside an image, JSON in a tar, rows of a table and rows of a dataset. Knows nothing of where
the fields come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .base import SourceOptions

CAPTION_NAMES = ("caption", "text", "prompt")
LABEL_NAMES = ("label", "class", "cls")


@dataclass(frozen=True, slots=True)
class Notes:
    """What is known of one image besides its pixels."""

    caption: str | None = None
    label: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def notes_of(values: Mapping[str, Any], options: SourceOptions) -> Notes:
    """Caption, label and the rest of ``values``: by the names the options give, else by the usual ones.

    A list of captions stays among the attributes, whole; its first text is the caption. Values that are None are left
    out.
    """
    rest = {name: value for name, value in values.items() if value is not None}
    caption = _take(rest, options.caption_column, CAPTION_NAMES)
    if caption is None:
        caption = _first_of_list(rest, options.caption_column, CAPTION_NAMES)
    return Notes(caption, _take(rest, options.label_column, LABEL_NAMES), rest)


def _take(values: dict[str, Any], column: str | None, usual: Sequence[str]) -> str | None:
    """Remove the first of the columns that holds a plain value and return it as text."""
    for name in (column,) if column else usual:
        value = values.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(values.pop(name))
    return None


def _first_of_list(values: Mapping[str, Any], column: str | None, usual: Sequence[str]) -> str | None:
    """The first text of the first of the columns that holds a list of texts; ``captions`` counts, too."""
    for name in (column,) if column else (*usual, "captions", "texts", "prompts"):
        value = values.get(name)
        if isinstance(value, list | tuple):
            return next((text for text in value if isinstance(text, str) and text), None)
    return None
