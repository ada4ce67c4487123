"""Which of a sample's fields is its caption, which its label, and what is left as attributes.

The same rule for JSON beside an image, JSON in a tar, rows of a table and rows of a dataset. Knows nothing of where
the fields come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..records import CAPTION_BYTES, CAPTIONS, Notes
from .base import SourceOptions

__all__ = ["CAPTIONS", "CAPTION_BYTES", "CAPTION_NAMES", "LABEL_NAMES", "Notes", "has_field", "merge_rows", "notes_of"]

CAPTION_NAMES = ("caption", "text", "prompt", "txt")
LABEL_NAMES = ("label", "class", "cls")
_LISTS = (*CAPTION_NAMES, CAPTIONS, "texts", "prompts")
_LABEL_SUFFIX = "cls"
_OF_JSON = "json."  # may stand before a field of the JSON beside an image, as it is named in datasets' columns
_NO_TEXTS: Mapping[str, str] = {}


def notes_of(values: Mapping[str, Any], options: SourceOptions, texts: Mapping[str, str] = _NO_TEXTS) -> Notes:
    """Caption, label and the rest of ``values``: by the names the options give, else by the usual ones.

    ``texts`` are those that stand in files (or members) of their own, by suffix, the one that counts most first: the
    first of them is the caption, ``cls`` the label, unless the options name another field. Nothing is lost: what is
    neither stays among the attributes. A list of captions stays there whole; its first text is the caption. Values
    that are None are left out. A name such as ``json.caption`` reaches into fields that hold fields.
    """
    rest = {name: value for name, value in values.items() if value is not None}
    left = dict(texts)
    caption = _named(rest, left, options.caption_column) if options.caption_column else _usual_caption(rest, left)
    label = _named(rest, left, options.label_column) if options.label_column else _usual_label(rest, left)
    for name, text in left.items():
        if text != caption:
            rest.setdefault(name, text)
    return Notes(caption, label, rest)


def has_field(name: str, values: Mapping[str, Any], texts: Mapping[str, str] = _NO_TEXTS) -> bool:
    """Whether there is a field of that name, which may reach into fields that hold fields."""
    return name in texts or _look_up(values, name)[0]


def merge_rows(rows: Sequence[Mapping[str, Any]], options: SourceOptions) -> dict[str, Any]:
    """What several rows say of one image: fields of later rows go before those of earlier ones, except captions, of
    which all are kept, in order, in the field ``captions``."""
    captions = list(dict.fromkeys(text for row in rows if (text := notes_of(row, options).caption)))
    values: dict[str, Any] = {}
    for row in rows:
        values |= {name: value for name, value in row.items() if value is not None}
    if len(captions) > 1:
        values[CAPTIONS] = captions
        field = options.caption_column or next((name for name in _spelled(values, CAPTION_NAMES)), None)
        if field in values:
            values[field] = captions[0]
    return values


def _usual_caption(values: dict[str, Any], texts: dict[str, str]) -> str | None:
    first = next((name for name in texts if name != _LABEL_SUFFIX), None)
    if first is not None:
        text = texts.pop(first)
        _forget_copy(values, CAPTION_NAMES, text)
        return text
    caption = _take(values, _spelled(values, CAPTION_NAMES))
    return _first_of_list(values, _spelled(values, _LISTS)) if caption is None else caption


def _usual_label(values: dict[str, Any], texts: dict[str, str]) -> str | None:
    label = texts.pop(_LABEL_SUFFIX, None)
    if label is None:
        return _take(values, _spelled(values, LABEL_NAMES))
    _forget_copy(values, LABEL_NAMES, label)
    return label


def _named(values: dict[str, Any], texts: dict[str, str], name: str) -> str | None:
    """The value of the field that was asked for by name; taken out where nothing else of it would be left."""
    found, value = _look_up(values, name)
    if not found:
        return texts.pop(name, None)
    if isinstance(value, list | tuple):
        return _first_text(value)
    return _take(values, [name]) if name in values else _as_text(value)


def _look_up(values: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """Whether there is such a field, and its value: by its whole name, else part by part."""
    if name in values:
        return True, values[name]
    for start in (place for place, letter in enumerate(name) if letter == "."):
        inner = values.get(name[:start])
        if isinstance(inner, Mapping):
            found, value = _look_up(inner, name[start + 1 :])
            if found:
                return found, value
    if name.startswith(_OF_JSON):
        return _look_up(values, name.removeprefix(_OF_JSON))
    return False, None


def _spelled(values: Mapping[str, Any], usual: Sequence[str]) -> list[str]:
    """Those of the usual names that occur: as they are, then in capitals (as LAION's TEXT)."""
    others = {name.lower(): name for name in values if name not in usual}
    return [*(name for name in usual if name in values), *(others[name] for name in usual if name in others)]


def _take(values: dict[str, Any], names: Sequence[str]) -> str | None:
    """Remove the first of the fields that holds a plain value and return it as text. NaN, which is how pandas writes
    that there is none, is removed."""
    for name in names:
        if isinstance(values[name], float) and math.isnan(values[name]):
            del values[name]
        elif (text := _as_text(values[name])) is not None:
            del values[name]
            return text
    return None


def _as_text(value: Any) -> str | None:
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value) if is_plain and value == value else None


def _first_of_list(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first text of the first of the fields that holds a list of texts."""
    return next((_first_text(values[name]) for name in names if isinstance(values[name], list | tuple)), None)


def _first_text(value: Sequence[Any]) -> str | None:
    return next((text for text in value if isinstance(text, str) and text), None)


def _forget_copy(values: dict[str, Any], usual: Sequence[str], text: str) -> None:
    """img2dataset writes the caption twice, as a text and into the JSON: one is enough."""
    for name in _spelled(values, usual):
        if _as_text(values[name]) is not None:
            if str(values[name]).strip() == text:
                del values[name]
            return
