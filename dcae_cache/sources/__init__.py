"""Where images come from. ``open_source`` picks the kind of source by what the URI looks like.

./images                                    a folder                                    folder.py
data/{000..099}.tar, https://.../00000.tar  input tars, also a list or a folder of them  tars.py
table.csv, table.jsonl, urls.parquet        a table with a column of paths or URLs       tables.py
hf:owner/name, a saved dataset, *.parquet   a Hugging Face dataset                       hf.py
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import SourceError
from .base import Source, SourceOptions
from .folder import FolderSource

__all__ = ["Source", "SourceOptions", "open_source"]

_KINDS = (
    "expected a folder of images, a .tar (pattern, URL or list), a .csv, .jsonl or .parquet table, or hf:owner/name"
)


def open_source(uri: str, options: SourceOptions | None = None) -> Source:
    """A source for ``uri``, of the kind its look tells.

    Raises SourceError when nothing of a known kind is there. The libraries of a kind are imported only for it.
    """
    options = options or SourceOptions()
    uri = os.path.expanduser(uri)
    if uri.startswith("hf:") and not uri.startswith("hf://"):
        return _dataset(uri, options)
    path = Path(uri)
    if path.is_dir():
        return _of_folder(path, options)
    name = uri.partition("?")[0] if "://" in uri else uri
    name = name.lower()
    if uri.startswith("pipe:") or name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txt", ".list")):
        return _tars(uri, options)
    if name.endswith((".csv", ".tsv", ".jsonl", ".ndjson")) or (name.endswith(".parquet") and _names_images(uri)):
        from .tables import TableSource

        return TableSource(uri, options)
    if name.endswith((".parquet", ".arrow")):
        return _dataset(uri, options)
    if path.exists():
        raise SourceError(f"{uri} is a file of no known kind; {_KINDS}.")
    raise SourceError(f"There is no folder {uri}. Check the path (the current folder is {Path.cwd()}); {_KINDS}.")


def _of_folder(path: Path, options: SourceOptions) -> Source:
    """A folder holds images, or a dataset, or nothing but tars."""
    from .hf import is_dataset_folder

    if any(path.glob("*.tar")) and not any(_is_no_tar(entry) for entry in path.iterdir()):
        return _tars(f"{path}/*.tar", options)
    if is_dataset_folder(path):
        return _dataset(str(path), options)
    return FolderSource(path, options)


def _is_no_tar(entry: Path) -> bool:
    """img2dataset and webdataset leave tables and statistics beside their tars."""
    beside = (".tar", ".json", ".parquet", ".txt", ".csv")
    return not entry.name.startswith(".") and (entry.is_dir() or entry.suffix.lower() not in beside)


def _names_images(uri: str) -> bool:
    from .tables import names_images

    return names_images(uri)


def _tars(uri: str, options: SourceOptions) -> Source:
    from .tars import TarSource

    return TarSource(uri, options)


def _dataset(uri: str, options: SourceOptions) -> Source:
    from .hf import HuggingFaceSource

    return HuggingFaceSource(uri, options)
