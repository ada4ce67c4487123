"""Where images come from. ``open_source`` picks the kind of source by what the URI looks like."""

from __future__ import annotations

from pathlib import Path

from ..errors import SourceError
from .base import Source, SourceOptions
from .folder import FolderSource

__all__ = ["Source", "SourceOptions", "open_source"]


def open_source(uri: str, options: SourceOptions | None = None) -> Source:
    """A source for ``uri``: a folder of images.

    Raises SourceError when nothing of a known kind is there.
    """
    path = Path(uri)
    if path.is_dir():
        return FolderSource(path, options or SourceOptions())
    if path.exists():
        raise SourceError(f"{uri} is a file; expected a folder of images. Name the folder that holds it.")
    raise SourceError(f"There is no folder {uri}. Check the path (the current folder is {Path.cwd()}).")
