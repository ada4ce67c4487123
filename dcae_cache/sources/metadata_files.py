"""Files in a folder that say something of many of its images: metadata.jsonl and its kin.

metadata.jsonl, .csv, .parquet    a row for each image, named by file_name (the convention of datasets)
dataset.json                      {"labels": [["00000/img0.png", 6], ...]} (EDM2, StyleGAN)
meta*.json                        {"image": {"caption": ..., "tags": ...}, ...} (kohya's sd-scripts)

Rows are found by the image's name: backslashes, ``./``, the case of the suffix and the Unicode form don't matter.
Knows nothing of which field is the caption, or of where the folder lies.
"""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from ..errors import SourceError, one_line
from ..images.formats import IMAGE_SUFFIXES
from ..text import parse_json
from .base import SourceOptions
from .delimited import find_delimiter, read_cells
from .texts import decode_text
from .trees import Tree

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
NAME_COLUMN = "file_name"
_BY_STEM = "stem:"  # before the names of kohya's images, which have no suffix


def may_be_metadata(name: str) -> bool:
    """Whether a file of that name says something of many images. A .json must be read to know."""
    return name in METADATA_NAMES or name == "dataset.json" or (name.startswith("meta") and name.endswith(".json"))


def normal_name(name: str) -> str:
    """The form in which names of images are compared."""
    name = os.path.normpath(name.replace("\\", "/"))
    stem, suffix = os.path.splitext(name)
    return unicodedata.normalize("NFC", stem) + suffix.lower()


def names_to_look_up(name: str) -> tuple[str, str]:
    """Under what an image's rows may stand: its name, and its name without the suffix."""
    name = normal_name(name)
    return name, _BY_STEM + os.path.splitext(name)[0]


def read_metadata(tree: Tree, name: str, options: SourceOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what ``names_to_look_up`` gives of an image, what is said of it) of each row of a metadata file.

    Nothing for a .json of another form. Raises SourceError, with the line, for one that can't be parsed.
    """
    import pyarrow as pa  # here: most folders have no such file, and this module is imported by small processes

    path, file = PurePosixPath(name), f"{tree.shown}/{name}"
    try:
        with tree.open_metadata(name) as opened:
            if path.suffix == ".json":
                for image, values in _of_json(parse_json(_decoded(opened, file, options)), path.name):
                    yield _target(tree, path.parent, image, by_stem=path.name != "dataset.json"), values
                return
            for where, row in _rows(opened, file, options):
                if not isinstance(row.get(NAME_COLUMN), str):
                    raise SourceError(
                        f"{file}, {where}: no column {NAME_COLUMN}. It must name each image, relative to the file; "
                        f"found {', '.join(map(str, row)) or 'nothing'}."
                    )
                yield _target(tree, path.parent, row.pop(NAME_COLUMN)), row
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise SourceError(
            f"Can't read {file}: {one_line(error)}. Mend the file, or move it out of the folder."
        ) from error


def _target(tree: Tree, folder: PurePosixPath, image: str, *, by_stem: bool = False) -> str:
    image = image.replace("\\", "/")
    inside = tree.below(image)
    image = str(folder / image) if inside is None else inside
    if by_stem and os.path.splitext(image)[1].lower() not in IMAGE_SUFFIXES:
        return _BY_STEM + unicodedata.normalize("NFC", os.path.normpath(image))
    return normal_name(image)


def _of_json(value: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The images of a dataset.json or of kohya's metadata, with what is said of each."""
    if not isinstance(value, Mapping):
        return
    if name == "dataset.json":
        labels = value.get("labels")
        for pair in labels if isinstance(labels, list) else ():
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str):
                yield pair[0], {"label": pair[1]}
        return
    if value and all(isinstance(item, Mapping) for item in value.values()):
        yield from ((image, dict(item)) for image, item in value.items())


def _rows(opened: BinaryIO, file: str, options: SourceOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, values) of each row of a metadata.jsonl, .csv or .parquet."""
    if file.endswith(".parquet"):
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(opened).iter_batches(8192):
            yield from (("row", dict(row)) for row in batch.to_pylist())
        return
    lines = _Lines(_decoded(opened, file, options))
    if file.endswith(".csv"):
        header: list[str] = []
        delimiter = find_delimiter(lines.first, ".csv", options.delimiter)
        for cells in read_cells(file, lines, delimiter):
            if not header:
                header = cells
                continue
            yield f"line {lines.line}", {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        return
    for line in lines:
        if line.strip():
            yield f"line {lines.line}", json_object(line, f"{file}, line {lines.line}")


def json_object(line: str, where: str) -> dict[str, Any]:
    """A JSON object; SourceError, with the place, for anything else."""
    try:
        value = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: no JSON ({one_line(error)}). Mend the line.") from error
    if not isinstance(value, dict):
        raise SourceError(f"{where}: expected a JSON object, found {type(value).__name__}. Mend the line.")
    return value


def _decoded(opened: BinaryIO, file: str, options: SourceOptions) -> str:
    text = decode_text(opened.read(), options.caption_encoding)
    if text is None:
        raise SourceError(
            f"{file} is neither UTF-8 nor says what it is. Name its encoding with `caption_encoding`, or save it as "
            "UTF-8."
        )
    return text


class _Lines:
    """Lines of a text, counted; they end as csv wants them to."""

    def __init__(self, text: str) -> None:
        self._lines = io.StringIO(text, newline="")
        self.first = text.partition("\n")[0]
        self.line = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.line += 1
        return line
