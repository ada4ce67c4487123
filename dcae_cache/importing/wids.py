"""Tars of .npy and .json for wids, as Sana and DC-Gen read them, with or without their wids-meta.json.

The key is the one that the JSON states, as an export leaves it there, or else the tar's stem and the member's name.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..errors import CacheError, one_line
from ..records import Entry
from .incoming import Importer, Incoming, entry_of, load_npy

INDEX_NAME = "wids-meta.json"
# What this tool and the trainers call what has a place of its own in a cache.
_KNOWN = ("key", "prompt", "captions", "clip_scores", "height", "width", "original_height", "original_width", "label")


class WidsImporter(Importer):
    """See the module. A location is the tar's name and where in it JSON and array begin, and how long they are."""

    name = "wids"

    def entries(self) -> Iterator[Entry]:
        for path, expected in self._tars():
            count = 0
            for stem, members in _samples(path):
                if "npy" not in members:
                    raise CacheError(f"{path}: {stem} has no .npy, only {', '.join(sorted(members)) or 'nothing'}.")
                count += 1
                array, notes = members["npy"], members.get("json", (0, 0))
                stated = _json_at(path, *notes).get("key")
                key = stated if isinstance(stated, str) and stated else f"{path.stem}/{stem}"
                location = f"{path.name}#{notes[0]}+{notes[1]},{array[0]}+{array[1]}"
                yield entry_of(key, location, path, array[1])
            if expected is not None and count != expected:
                raise CacheError(f"{path} holds {count} samples, {INDEX_NAME} says {expected}. Is it whole?")

    def read(self, entries: Sequence[Entry]) -> Iterator[Incoming]:
        for name, group in groupby(entries, lambda entry: entry.location.rpartition("#")[0]):
            path = self.folder / name
            for entry in group:
                notes, array = (_range(text) for text in entry.location.rpartition("#")[2].split(","))
                latents = load_npy(io.BytesIO(_bytes_at(path, *array)), f"{path}: {entry.key}")
                yield _incoming(_json_at(path, *notes), latents)

    def _tars(self) -> list[tuple[Path, int | None]]:
        """Every tar, and how many samples the index says it has."""
        index = self.folder / INDEX_NAME
        if index.is_file():
            try:
                lines = json.loads(index.read_bytes())["shardlist"]
                tars = [(self.folder / Path(line["url"]).name, int(line["nsamples"])) for line in lines]
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise CacheError(f"{index} is no index of wids: {one_line(error)}.") from error
            missing = [path for path, _ in tars if not path.is_file()]
            if missing:
                raise CacheError(f"{index} names {missing[0].name}, which is not in {self.folder}.")
            return list(tars)
        found = sorted(self.folder.glob("*.tar"))
        if not found:
            raise CacheError(f"{self.folder} holds neither {INDEX_NAME} nor tars.")
        return [(path, None) for path in found]


def _samples(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Name, and suffix -> (offset, size), of every sample of a tar: neighbours of one name."""
    try:
        with tarfile.open(path, "r:") as tar:
            files = ((member.name.rpartition("."), member) for member in tar if member.isfile())
            for stem, group in groupby(files, lambda item: item[0][0]):
                yield stem, {name[2]: (member.offset_data, member.size) for name, member in group}
    except (tarfile.TarError, OSError) as error:
        raise CacheError(f"{path} can't be read as a tar: {one_line(error)}.") from error


def _bytes_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _json_at(path: Path, offset: int, size: int) -> dict[str, Any]:
    if not size:
        return {}
    try:
        values = json.loads(_bytes_at(path, offset, size))
    except (ValueError, OSError) as error:
        raise CacheError(f"{path}: the JSON at byte {offset} can't be read: {one_line(error)}.") from error
    if not isinstance(values, dict):
        raise CacheError(f"{path}: the JSON at byte {offset} is no object.")
    return values


def _range(text: str) -> tuple[int, int]:
    offset, _, size = text.partition("+")
    return int(offset), int(size)


def _incoming(notes: dict[str, Any], latents: Any) -> Incoming:
    captions = [text for text in notes.get("captions") or () if isinstance(text, str)]
    caption = notes.get("prompt") or notes.get("caption") or (captions[0] if captions else None)
    attributes = {name: value for name, value in notes.items() if name not in _KNOWN}
    if len(captions) > 1:
        attributes |= {"captions": captions, "clip_scores": notes.get("clip_scores")}
    label = notes.get("label")
    return Incoming(
        latents=latents,
        caption=caption if isinstance(caption, str) else None,
        label=None if label is None else str(label),
        height=_size(notes.get("original_height", notes.get("height"))),
        width=_size(notes.get("original_width", notes.get("width"))),
        attributes=attributes,
    )


def _size(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value > 0 else None
