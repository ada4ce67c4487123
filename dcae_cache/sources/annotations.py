"""Captions, labels and attributes that lie beside the images of a folder.

Three places, each overriding the one before: the name of the folder an image lies in (its label, as in torchvision's
and datasets' ImageFolder); metadata files in any folder above the image (metadata_files.py); files beside the image
with its name: ``.txt``, ``.caption``, ``.tags`` (captions), ``.cls`` (label), ``.json`` (attributes, caption, label).
Knows nothing of pixels, or of where the folder lies.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from threading import Lock
from typing import Any

from ..ledger import NO_SUFFIX, Counts
from .base import SourceOptions, options_stamp
from .beside import Beside, note_kinds
from .fields import Notes, merge_rows
from .metadata_files import may_be_metadata, names_to_look_up, read_metadata
from .trees import Tree

MAX_NOTE_BYTES = 2**26  # of a file beside an image


class FolderAnnotations:
    """Looks up the notes of any image of one folder. Metadata files are read once, on first use."""

    def __init__(self, tree: Tree, options: SourceOptions) -> None:
        self._tree = tree
        self._options = options
        self._lock = Lock()
        self._kinds = note_kinds(options)
        self.forget()

    def forget(self) -> None:
        """Start a new listing. The folder must be listed before the notes of any image are asked for."""
        self._sidecars: set[str] = set()  # suffixes as they are spelled; "*.txt" for those of a.jpg.txt
        self._metadata_files: list[str] = []
        self._read_files = 0
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._not_metadata: list[str] = []
        self._names = array("q")  # hashes of what images may be looked up by

    def notice(self, prefix: str, images: Iterable[str], others: Sequence[str], counts: Counts) -> None:
        """Take note of the files of one directory, so that later look-ups only try what can be there, and count those
        that are no images."""
        if not others and not self._metadata_files:
            return
        whole = set(images)
        stems = {os.path.splitext(name)[0] for name in whole} if others else set()
        for name in others:
            stem, suffix = os.path.splitext(name)
            kind = suffix.lower().removeprefix(".")
            if kind in self._kinds and (stem in stems or stem in whole):
                self._sidecars.add(f"*{suffix}" if stem in whole else suffix)
                counts.found += 1
                counts.notes += 1
            elif may_be_metadata(name):
                self._metadata_files.append(prefix + name)
                counts.found += 1
                counts.notes += 1
            elif kind in self._kinds and kind != "json":
                counts.stray(prefix + name)
            else:
                counts.ignore(suffix.lower() or NO_SUFFIX)
        if self._metadata_files:  # rows hardly ever name images of folders that were listed before their file
            for name in whole:
                self._names.extend(map(hash, names_to_look_up(prefix + name)))

    def finish(self, counts: Counts) -> None:
        """Count what is known only once all directories were noticed: files that turned out to be no metadata, and
        rows that name no image. Raises SourceError for a metadata file that can't be parsed."""
        self._metadata()
        for name in self._not_metadata:
            counts.notes -= 1
            counts.found -= 1
            counts.ignore(os.path.splitext(name)[1].lower())
        if self._rows:
            known = set(self._names)
            for name, rows in self._rows.items():
                if hash(name) not in known and self._tree.stat(name) is None:
                    counts.unmatched += len(rows)
                    counts.first_unmatched = counts.first_unmatched or name.removeprefix("stem:")
                elif len(rows) > 1:
                    counts.merged += len(rows) - 1
                    counts.first_merged = counts.first_merged or name.removeprefix("stem:")
        self._names = array("q")

    def found(self) -> dict[str, Any]:
        """What was noticed, as JSON values."""
        return {"sidecars": sorted(self._sidecars), "metadata_files": sorted(self._metadata_files)}

    def adopt(self, found: Mapping[str, Any]) -> None:
        """Notice at once what another listing of the same folder ``found``."""
        self.forget()
        self._sidecars.update(found["sidecars"])
        self._metadata_files = list(found["metadata_files"])

    def of(self, name: str) -> Notes:
        """The notes of an image, by its name in the tree; SampleSkipped for a broken sidecar.

        A caption whose encoding isn't known is none; its bytes are kept among the attributes.
        """
        label = os.path.basename(os.path.dirname(name)) or None
        if self.is_empty:  # as of most folders: not worth the way through all kinds of notes
            return Notes(None, label)
        notes = self.fields(name).notes()
        return Notes(notes.caption, label if notes.label is None else notes.label, notes.attributes)

    @property
    def is_empty(self) -> bool:
        """Whether nothing lies beside the images."""
        return not self._sidecars and not self._metadata_files

    def stamp(self, name: str) -> str:
        """Changes with whatever ``of`` reads: sizes and times of the files beside the image, and rows about it."""
        seen: list[Any] = self._rows_of(name)
        for _, sidecar in self._sidecars_of(name):
            stamp = self._tree.stat(sidecar)
            if stamp is not None:
                seen.append([os.path.basename(sidecar), *stamp])
        return json.dumps(seen, default=str)

    def options_stamp(self) -> str:
        return options_stamp(self._options)

    def fields(self, name: str) -> Beside:
        """All that is said of an image, not yet told apart; SampleSkipped for a broken sidecar."""
        beside = Beside(merge_rows(self._rows_of(name), self._options), self._options)
        for kind, sidecar in self._sidecars_of(name):
            data = self._tree.read_note(sidecar, MAX_NOTE_BYTES)
            if data is not None:
                beside.add(kind, data, os.path.basename(sidecar))
        return beside

    def _sidecars_of(self, name: str) -> Iterable[tuple[str, str]]:
        """(kind, name) of the files that may lie beside an image, the kinds in order."""
        path = PurePosixPath(name)
        for kind in self._kinds:
            for spelled in sorted(self._sidecars, reverse=True):  # lower case first
                if spelled.lower().lstrip("*.") == kind:
                    suffix = spelled.removeprefix("*")
                    yield kind, f"{name}{suffix}" if spelled.startswith("*") else str(path.with_suffix(suffix))

    def _rows_of(self, name: str) -> list[dict[str, Any]]:
        rows = self._metadata()
        return [row for key in names_to_look_up(name) for row in rows.get(key, ())] if rows else []

    def _metadata(self) -> dict[str, list[dict[str, Any]]]:
        """All rows so far, by the name of their image."""
        with self._lock:
            while self._read_files < len(self._metadata_files):
                file = self._metadata_files[self._read_files]
                any_rows = False
                for target, row in read_metadata(self._tree, file, self._options):
                    any_rows = True
                    self._rows.setdefault(target, []).append(row)
                if not any_rows and file.endswith(".json"):
                    self._not_metadata.append(file)
                self._read_files += 1
            return self._rows


def digest(stamps: Iterable[str]) -> str:
    """sha256 over several stamps."""
    whole = hashlib.sha256()
    for stamp in stamps:
        whole.update(stamp.encode("utf-8", "backslashreplace") + b"\0")
    return whole.hexdigest()
