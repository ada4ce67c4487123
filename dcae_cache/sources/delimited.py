"""CSV and its kin: which character stands between the cells, and rows that don't fit their header, by line.

Knows nothing of images or captions.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Protocol

from ..errors import SourceError

_DELIMITERS = (",", "\t", ";", "|")


class NumberedLines(Protocol):
    """Lines of text, with the number (from 1) of the one that was given last."""

    line: int

    def __iter__(self) -> Iterator[str]: ...

    def __next__(self) -> str: ...


def find_delimiter(header: str, suffix: str, wanted: str | None) -> str:
    """The character between the cells: the one ``wanted``, else the one that the first line holds most of.

    A comma (in .tsv files: a tab) where the line has none at all.
    """
    if wanted:
        return "\t" if wanted in ("\\t", "tab") else wanted
    usual = "\t" if suffix == ".tsv" else ","
    outside = "".join(header.split('"')[::2])  # names in quotes may hold anything
    return max((usual, *_DELIMITERS), key=outside.count)


def read_cells(path: str, lines: NumberedLines, delimiter: str, width: int | None = None) -> Iterator[list[str]]:
    """The rows of cells, blank ones left out. ``width``: cells of the header; None: the first row is the header.

    Raises SourceError, with the line where the row begins, for a quote that is never closed or closed too early, and
    for a row with more or fewer cells than the header: half a caption, or a file swallowed from there on, otherwise.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = lines.line + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise SourceError(
                f"{path}, line {first}: {error} (the row ends in line {lines.line}). A quote inside a cell is written "
                'twice, and such a cell stands in quotes: "a ""b"" c". Mend the line.'
            ) from error
        if cells is None:
            return
        if not cells:
            continue
        width = len(cells) if width is None else width
        if len(cells) != width:
            raise SourceError(
                f"{path}, line {first}: {len(cells)} cells, where the header has {width}. A cell that holds "
                f"{delimiter!r} or a line break must stand in quotes; if cells are parted by something else, say by "
                "what with `delimiter`. Mend the line."
            )
        yield cells
