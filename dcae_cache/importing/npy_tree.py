"""One .npy a sample in a folder for each class, as efficientvit and DC-Gen write them: ``<class>/<name>.npy``.

The label is the folder's name; files beside the folders have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import CacheError
from ..records import Entry
from .incoming import Importer, Incoming, entry_of, load_npy


class NpyImporter(Importer):
    """See the module. The key is the path without its suffix."""

    name = "npy"

    def entries(self) -> Iterator[Entry]:
        found = False
        for path in sorted(self.folder.rglob("*.npy")):
            place = path.relative_to(self.folder)
            if path.is_file() and not any(part.startswith(".") for part in place.parts):
                found = True
                yield entry_of(place.with_suffix("").as_posix(), place.as_posix(), path)
        if not found:
            raise CacheError(f"{self.folder} holds no .npy files.")

    def read(self, entries: Sequence[Entry]) -> Iterator[Incoming]:
        for entry in entries:
            path = self.folder / entry.location
            label, slash, _ = entry.key.partition("/")
            yield Incoming(latents=load_npy(path, str(path)), label=label if slash else None)
