"""Which shards of an export are whole: a line for the export itself, then one for each shard.

Knows nothing of formats.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CacheError, UsageError, one_line
from ..files import write_failed

JOURNAL_NAME = ".dcae-cache-export.jsonl"
_LAYOUT = 1  # raised when a release writes other files from the same samples


class Journal:
    """The journal of the export in ``folder``, whose lock the caller holds. ``shards``: what was noted of each.

    ``identity`` (JSON values): what makes two exports the same. Raises UsageError where the folder holds another
    export, or files of somebody else; CacheError where the journal can't be read or written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._path = folder / JOURNAL_NAME
        self.shards: list[dict[str, Any]] = []
        known = {"layout": _LAYOUT, **identity}
        lines = self._read()
        if lines:
            _refuse_another(folder, lines[0], known)
            self.shards = lines[1:]
            return
        strangers = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if strangers:
            raise UsageError(
                f"`out` {folder} holds other files ({', '.join(strangers[:3])}). Nothing was written; choose an empty "
                "or new folder."
            )
        self._append(known)

    def add(self, noted: Mapping[str, Any]) -> None:
        """Note that the next shard is whole."""
        self._append(noted)
        self.shards.append(dict(noted))

    def _append(self, values: Mapping[str, Any]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(values, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CacheError(write_failed(self._path, error)) from error

    def _read(self) -> list[dict[str, Any]]:
        """The lines that are whole. One that a killed run left unfinished is cut off."""
        try:
            if not self._path.exists():
                return []
            with self._path.open("r+b") as file:
                whole, end, _ = file.read().rpartition(b"\n")
                file.truncate(len(whole) + len(end))
            return [dict(json.loads(line)) for line in whole.splitlines()]
        except (OSError, ValueError, TypeError) as error:
            raise CacheError(
                f"{self._path} can't be read: {one_line(error)}. It says which files are whole: export into another "
                "folder."
            ) from error


def _refuse_another(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not changed:
        return
    shown = [
        "the cache has changed since" if name == "cache" else f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in changed
    ]
    raise UsageError(
        f"`out` {folder} holds another export: {'; '.join(shown)}. Nothing was written; use the same options to go on "
        "with it, or choose another folder."
    )
