"""Input tars made on the spot."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from helpers.images import encoded_image

Members = Iterable[tuple[str, bytes]]


def make_tar(path: Path, members: Members, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def triples(first: int, count: int) -> list[tuple[str, bytes]]:
    """img2dataset's layout: image, caption and JSON of each sample."""
    members = []
    for number in range(first, first + count):
        key = f"{number:09d}"
        notes = {"caption": f"picture {number}", "key": key, "status": "success", "width": 128, "height": 96}
        members += [
            (f"{key}.jpg", encoded_image(96, 128, seed=number)),
            (f"{key}.txt", f"picture {number}".encode()),
            (f"{key}.json", json.dumps(notes).encode()),
        ]
    return members
