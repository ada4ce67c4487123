"""safetensors as LightningDiT writes and reads them: ``latents``, ``latents_flip`` [N, c, h, w] and ``labels`` [N].

Samples have no names there: the key is the file's stem and the row's number. Labels are numbers; the names that an
export left in classes.json come back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import CacheError, one_line
from ..records import Entry
from .incoming import Importer, Incoming, entry_of


class LightningDiTImporter(Importer):
    """See the module."""

    name = "lightningdit"

    def entries(self) -> Iterator[Entry]:
        for path in self._files:
            shape = self._shape(path)
            for row in range(shape[0]):
                yield entry_of(f"{path.stem}/{row:08d}", f"{path.name}#{row}", path, path.stat().st_size // shape[0])

    def read(self, entries: Sequence[Entry]) -> Iterator[Incoming]:
        for name, group in groupby(entries, lambda entry: entry.location.rpartition("#")[0]):
            rows = [int(entry.location.rpartition("#")[2]) for entry in group]
            first, last = rows[0], rows[-1] + 1  # of one part, so neighbours
            with _opened(self.folder / name) as file:
                latents = file.get_slice("latents")[first:last]
                mirrored = file.get_slice("latents_flip")[first:last] if self.with_mirrored else None
                labels = file.get_tensor("labels")[first:last].tolist() if "labels" in file.keys() else None  # noqa: SIM118 - no mapping
            for row in rows:
                yield Incoming(
                    latents=latents[row - first],
                    mirrored=None if mirrored is None else mirrored[row - first],
                    label=None if labels is None else self._label(labels[row - first]),
                )

    @property
    def with_mirrored(self) -> bool:
        return self._mirrored

    @cached_property
    def _files(self) -> list[Path]:
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise CacheError(f"{self.folder} holds no .safetensors files.")
        return files

    @cached_property
    def _mirrored(self) -> bool:
        having = []
        for path in self._files:
            with _opened(path) as file:
                having.append("latents_flip" in file.keys())  # noqa: SIM118 - no mapping
        if len(set(having)) > 1:
            raise CacheError(
                f"{self._files[having.index(False)]} has no latents_flip, and {self._files[having.index(True)].name} "
                "has. Expected all files to have it, or none."
            )
        return having[0]

    @cached_property
    def _names(self) -> dict[int, str]:
        path = self.folder / "classes.json"
        if not path.is_file():
            return {}
        try:
            return {int(number): str(label) for label, number in json.loads(path.read_bytes()).items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise CacheError(f"{path} can't be read as labels and their numbers: {one_line(error)}.") from error

    def _label(self, number: int) -> str:
        return self._names.get(number, str(number))

    @lru_cache(maxsize=1)  # noqa: B019 - lives as long as the import
    def _shape(self, path: Path) -> list[int]:
        with _opened(path) as file:
            names = set(file.keys())
            if "latents" not in names:
                raise CacheError(f"{path} holds {', '.join(sorted(names)) or 'nothing'}, expected a tensor 'latents'.")
            shapes = {name: list(file.get_slice(name).get_shape()) for name in names}
        shape = shapes["latents"]
        if len(shape) != 4 or not shape[0]:
            raise CacheError(f"{path}: latents are of shape {shape}, expected [N, c, h, w].")
        if shapes.get("latents_flip", shape) != shape or shapes.get("labels", shape[:1]) != shape[:1]:
            raise CacheError(f"{path}: its tensors are of shapes {shapes}, expected as many of each.")
        return shape


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CacheError(f"{path} can't be read as safetensors: {one_line(error)}.") from error
