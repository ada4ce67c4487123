"""Captions, labels and attributes that lie beside the images of a folder.

Three places, each overriding the one before: the name of the folder an image lies in (its label, as in torchvision's
and datasets' ImageFolder); a ``metadata.jsonl`` or ``metadata.csv`` with a ``file_name`` column in any folder above
the image (the ``datasets`` convention); ``name.txt`` (caption) and ``name.json`` (attributes) beside the image.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from ..errors import SampleSkipped, SourceError
from .base import SourceOptions
from .fields import Notes, notes_of

_METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


class FolderAnnotations:
    """Looks up the notes of any image of one folder. Metadata files are read once, on first use."""

    def __init__(self, root: Path, options: SourceOptions) -> None:
        self._root = root
        self._options = options
        self._lock = Lock()
        self.forget()

    def forget(self) -> None:
        """Start a new listing. The folder must be listed before the notes of any image are asked for."""
        self._sidecars = {".txt": False, ".json": False}
        self._metadata_files: set[str] = set()
        self._rows: dict[str, dict[str, Any]] | None = None

    def notice(self, name: str, prefix: str) -> None:
        """Take note of a non-image file met while listing, so that later look-ups only try what can be there."""
        suffix = os.path.splitext(name)[1]
        if name in _METADATA_NAMES:
            self._metadata_files.add(prefix + name)
        elif suffix in self._sidecars:
            self._sidecars[suffix] = True

    def found(self) -> dict[str, Any]:
        """What was noticed, as JSON values."""
        return {"sidecars": dict(self._sidecars), "metadata_files": sorted(self._metadata_files)}

    def adopt(self, found: Mapping[str, Any]) -> None:
        """Notice at once what another listing of the same folder ``found``."""
        self.forget()
        self._sidecars.update(found["sidecars"])
        self._metadata_files.update(found["metadata_files"])

    def of(self, path: Path, name: str) -> Notes:
        """The notes of the image at ``path``, ``name`` relative to the root; SampleSkipped for a broken sidecar."""
        values: dict[str, Any] = dict(self._metadata().get(name, {}))
        folder = PurePosixPath(name).parent.name
        label = folder or None
        if self._sidecars[".json"]:
            values |= _read_json(path.with_suffix(".json"))
        notes = notes_of(values, self._options)
        text = _read_text(path.with_suffix(".txt")) if self._sidecars[".txt"] else None
        return Notes(text or notes.caption, label if notes.label is None else notes.label, notes.attributes)

    def _metadata(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            if self._rows is None:
                self._rows = {}
                for file in sorted(self._metadata_files):
                    folder = str(PurePosixPath(file).parent)
                    for number, row in _metadata_rows(self._root / file):
                        if not isinstance(row.get("file_name"), str):
                            raise SourceError(
                                f"{self._root / file}, row {number}: no column file_name. It must name each image, "
                                f"relative to the file; found {', '.join(map(str, row)) or 'nothing'}."
                            )
                        target = os.path.normpath(os.path.join(folder, row.pop("file_name")))
                        self._rows.setdefault(target, {}).update(row)
            return self._rows


def _metadata_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, values) of a metadata.jsonl or metadata.csv; SourceError where it can't be parsed."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                yield from (
                    (number, {k: v for k, v in row.items() if v})
                    for number, row in enumerate(csv.DictReader(lines), 1)
                )
                return
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise SourceError(f"{file}, line {number}: expected a JSON object, found {type(row).__name__}.")
                yield number, row
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise SourceError(f"Can't read {file}: {error}. Mend the file, or move it out of the folder.") from error


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SampleSkipped("bad_caption", f"{path.name}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SampleSkipped("bad_json", f"{path.name}: {error}") from error
    return value if isinstance(value, dict) else {"json": value}
