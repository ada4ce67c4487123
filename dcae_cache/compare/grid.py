"""A picture of reconstructions: one row for each image, the original first, then two columns for each autoencoder.

    original | reconstruction  difference | reconstruction  difference | ...

Text is wrapped to its column, so that none is cut off. Drawn with Pillow; knows nothing of models or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..errors import UsageError
from ..files import replace_atomically

CELL = 320  # the longest side of a picture in the grid, in pixels
_NARROWEST = 200  # a column is at least so wide, for its text
_GAP, _LINE, _TITLE, _MARGIN = 12, 19, 26, 16
_PAPER, _INK, _FAINT, _ALERT = (250, 250, 248), (24, 24, 24), (110, 110, 110), (170, 30, 20)
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A reconstruction and its difference, as large as the original of the row, and what is written below them."""

    reconstruction: Image.Image
    difference: Image.Image
    label: str


@dataclass(slots=True)
class Column:
    """An autoencoder: its title, the lines below it, and one pair for each row it got to.

    ``failure`` is written into the first row it did not get to.
    """

    title: str
    lines: Sequence[str] = ()
    pairs: list[Pair] = field(default_factory=list)
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """An image, shrunk by ``shrink``, and its name and size."""

    original: Image.Image
    label: str


def shrink(image: Image.Image) -> Image.Image:
    """The image no larger than a cell: averaged down where it is, else as it is, to the pixel."""
    scale = CELL / max(image.size)
    if scale >= 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BOX, reducing_gap=None)


def grid_format(path: Path) -> str:
    """Pillow's name of the format that the suffix says. Raises UsageError for any but PNG and JPEG."""
    name = _FORMATS.get(path.suffix.lower())
    if name is None:
        raise UsageError(f"`out` {path}: the grid is a .png or .jpg by its suffix; {path.suffix or 'none'} found")
    if path.is_dir():
        raise UsageError(f"`out` {path} is a folder; name the file to write")
    if not path.parent.is_dir():
        raise UsageError(f"`out` {path}: there is no folder {path.parent}; make it first")
    return name


def save_grid(image: Image.Image, path: Path) -> None:
    """Write the picture whole or not at all, as PNG or JPEG by the suffix."""
    kind = grid_format(path)
    with replace_atomically(path) as file:
        image.save(file, kind, **({"quality": 90, "optimize": True} if kind == "JPEG" else {}))


def draw_grid(rows: Sequence[Row], columns: Sequence[Column], footer: str = "") -> Image.Image:
    """The whole picture, in RGB. Needs at least one row."""
    return _Drawing(rows, columns, footer).drawn()


class _Drawing:
    """Sizes are worked out first, from the wrapped texts; then everything is drawn."""

    def __init__(self, rows: Sequence[Row], columns: Sequence[Column], footer: str) -> None:
        self._font, self._bold = ImageFont.load_default(14), ImageFont.load_default(17)
        self._rows, self._columns = rows, columns
        self._cell = max(_NARROWEST, *(row.original.width for row in rows))
        self._pair = 2 * self._cell + _GAP
        self._width = 2 * _MARGIN + self._cell + len(columns) * (self._pair + 2 * _GAP)
        self._footer = self._wrap(footer, self._width - 2 * _MARGIN) if footer else []
        self._heads = [
            [(line, self._bold) for line in self._wrap(column.title, self._pair, self._bold)]
            + [(line, self._font) for text in column.lines for line in self._wrap(text, self._pair)]
            for column in columns
        ]
        heights = [sum(_TITLE if font is self._bold else _LINE for _, font in head) for head in self._heads]
        self._head_height = max([_TITLE, *heights]) + _GAP
        self._failures = {
            (len(column.pairs), index): self._wrap(f"failed: {column.failure}", self._pair - 2 * _GAP)
            for index, column in enumerate(columns)
            if column.failure is not None
        }
        self._labels = [
            [self._wrap(row.label, self._cell)]
            + [
                self._wrap(column.pairs[number].label, self._pair) if number < len(column.pairs) else []
                for column in columns
            ]
            for number, row in enumerate(rows)
        ]

    def drawn(self) -> Image.Image:
        heights = [self._row_height(number) for number in range(len(self._rows))]
        height = 2 * _MARGIN + self._head_height + sum(heights) + len(self._footer) * _LINE
        picture = Image.new("RGB", (self._width, height), _PAPER)
        draw = ImageDraw.Draw(picture)
        draw.text((_MARGIN, _MARGIN), "original", _INK, self._bold)
        for index, head in enumerate(self._heads):
            top = _MARGIN
            for line, font in head:
                draw.text((self._left(index), top), line, _INK, font)
                top += _TITLE if font is self._bold else _LINE
        top = _MARGIN + self._head_height
        for number, row_height in enumerate(heights):
            self._draw_row(picture, draw, number, top)
            top += row_height
        self._lines(draw, self._footer, _MARGIN, top, _FAINT)
        return picture

    def _row_height(self, number: int) -> int:
        texts = max(len(lines) for lines in self._labels[number])
        failures = [len(lines) * _LINE + 2 * _GAP for (row, _), lines in self._failures.items() if row == number]
        return max(self._rows[number].original.height, *failures, 0) + texts * _LINE + 2 * _GAP

    def _draw_row(self, picture: Image.Image, draw: ImageDraw.ImageDraw, number: int, top: int) -> None:
        row, labels = self._rows[number], self._labels[number]
        failures = [len(lines) * _LINE + 2 * _GAP for (at, _), lines in self._failures.items() if at == number]
        below = top + max(row.original.height, *failures, 0) + 4
        picture.paste(row.original, (_MARGIN, top))
        self._lines(draw, labels[0], _MARGIN, below, _INK)
        for index, column in enumerate(self._columns):
            left = self._left(index)
            if number < len(column.pairs):
                pair = column.pairs[number]
                picture.paste(pair.reconstruction, (left, top))
                picture.paste(pair.difference, (left + self._cell + _GAP, top))
                self._lines(draw, labels[index + 1], left, below, _INK)
            elif (number, index) in self._failures:
                draw.rectangle((left, top, left + self._pair, below - 5), outline=_ALERT)
                self._lines(draw, self._failures[number, index], left + _GAP, top + _GAP, _ALERT)

    def _left(self, index: int) -> int:
        return _MARGIN + self._cell + 2 * _GAP + index * (self._pair + 2 * _GAP)

    def _lines(
        self, draw: ImageDraw.ImageDraw, lines: Sequence[str], left: int, top: int, ink: tuple[int, int, int]
    ) -> None:
        for number, line in enumerate(lines):
            draw.text((left, top + number * _LINE), line, ink, self._font)

    def _wrap(
        self, text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont | None = None
    ) -> list[str]:
        """Lines no wider than ``width`` pixels; a word that is wider is broken."""
        font = font or self._font
        lines = [""]
        for word in text.split():
            candidate = f"{lines[-1]} {word}".lstrip()
            if font.getlength(candidate) <= width:
                lines[-1] = candidate
                continue
            if lines[-1]:
                lines.append("")
            for letter in word:
                if lines[-1] and font.getlength(lines[-1] + letter) > width:
                    lines.append("")
                lines[-1] += letter
        return lines
