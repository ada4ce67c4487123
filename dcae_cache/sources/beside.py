"""What stands beside an image, gathered file by file (or member by member): texts, JSON, and what isn't readable.

Knows nothing of folders or tars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SampleSkipped, SourceError, one_line
from ..text import parse_json
from .base import SourceOptions
from .fields import CAPTION_BYTES, CAPTIONS, Notes, has_field, notes_of
from .texts import decode_text, kept_bytes

CAPTION_KINDS = ("txt", "caption", "tags")
_MOST_NAMED = 20  # fields named where the one wanted isn't there


def note_kinds(options: SourceOptions) -> tuple[str, ...]:
    """The suffixes (lower case, no dot) of what is read beside an image, the one that counts most first."""
    wanted = options.caption_extension
    return (*((wanted.lower().removeprefix("."),) if wanted else CAPTION_KINDS), "cls", "json")


class Beside:
    """Fields and texts of one image, as ``notes_of`` wants them, to be added in the order of ``note_kinds``."""

    def __init__(self, values: Mapping[str, Any], options: SourceOptions) -> None:
        self.values = dict(values)
        self.texts: dict[str, str] = {}
        self._options = options

    def add(self, kind: str, data: bytes, name: str) -> None:
        """Add the file ``name``. A text whose encoding isn't known is kept as it is; SampleSkipped for broken JSON."""
        text = decode_text(data, self._options.caption_encoding)
        if kind == "json":
            self._add_json(text, name)
        elif text is None:
            self.values[CAPTION_BYTES] = kept_bytes(data)
        elif kind != "cls" and self._options.caption_lines:
            self._add_lines(kind, [line.strip() for line in text.splitlines() if line.strip()])
        elif text.strip():
            self.texts.setdefault(kind, text.strip())

    def _add_lines(self, kind: str, lines: list[str]) -> None:
        """Captions of one file; those of a kind that counts more go before it."""
        if lines and kind not in self.texts:
            self.texts[kind] = lines[0]
            if len(lines) > 1:
                self.values.setdefault(CAPTIONS, lines)

    def notes(self) -> Notes:
        return notes_of(self.values, self._options, self.texts)

    def _add_json(self, text: str | None, name: str) -> None:
        """Fields, a caption, or a list of captions."""
        try:
            if text is None:
                raise ValueError("it is not UTF-8")
            value = parse_json(text)
        except ValueError as error:
            raise SampleSkipped("bad_json", f"{name}: {one_line(error)}") from error
        if isinstance(value, dict):
            self.values |= value
        elif isinstance(value, str):
            self.texts.setdefault("json", value)
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            self.values[CAPTIONS] = value
        else:
            self.values["json"] = value


class FieldSearch:
    """Finds out whether the fields that the options name occur at all, image by image, until they do."""

    def __init__(self, options: SourceOptions) -> None:
        self._missing = {
            option: column
            for option in ("caption_column", "label_column")
            if (column := getattr(options, option)) is not None
        }
        self._seen: dict[str, None] = {}

    @property
    def is_over(self) -> bool:
        return not self._missing

    def look_at(self, beside: Beside) -> None:
        """Look at the fields of one more image."""
        if len(self._seen) < _MOST_NAMED:
            self._seen.update(dict.fromkeys([*beside.texts, *beside.values]))
        for option, column in list(self._missing.items()):
            if has_field(column, beside.values, beside.texts):
                del self._missing[option]

    def refuse_missing(self, uri: str) -> None:
        """Raise SourceError where one was found nowhere, with the fields that there are."""
        for option, column in self._missing.items():
            there = ", ".join(list(self._seen)[:_MOST_NAMED]) or "none at all"
            raise SourceError(f"There is no field {column} in {uri}; it has: {there}. Choose one with `{option}`.")
