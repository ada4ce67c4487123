"""Opens a source of the kind that its URI looks like. Knows nothing of what the sources hold.

./images, s3://bucket/images                a folder                                    folder.py
data/{000..099}.tar, https://.../00000.tar  input tars, also a list or a folder of them  tars.py
table.csv, table.jsonl, urls.parquet        a table with a column of paths or URLs       tables.py
hf:owner/name, a saved dataset, *.parquet   a Hugging Face dataset                       hf.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SourceError, UsageError
from ..remote import WEB, is_folder, join_url
from ..urls import is_url, without_secrets
from .base import ListedSource, SourceOptions
from .folder import FolderSource, holds_images
from .tar_names import LIST_SUFFIXES, TAR_SUFFIXES, pattern_of_tars, tars_in
from .trees import LocalTree

if TYPE_CHECKING:
    from .remote_tree import RemoteTree

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_READ_OTHERWISE = (*TAR_SUFFIXES, ".parquet", ".arrow")
_KINDS = (
    "expected a folder of images, a .tar (pattern, URL or list), a .csv, .jsonl or .parquet table, or hf:owner/name"
)


def open_source(uri: str, options: SourceOptions | None = None) -> ListedSource:
    """A source for ``uri``, of the kind its look tells.

    Raises SourceError when nothing of a known kind is there. The libraries of a kind are imported only for it.
    """
    options = options or SourceOptions()
    uri = os.path.expanduser(uri)
    if uri.startswith("hf:") and not uri.startswith("hf://"):
        return _dataset(uri, options)
    path = Path(uri.removeprefix("file://"))  # links of this machine are followed as they should be, only once
    if path.is_dir():
        return _of_folder(path, options)
    if options.table and not is_url(uri):
        raise UsageError(f"`table` names a file in a folder, and {uri} is none. Give the table itself as the source.")
    name = uri.partition("?")[0] if "://" in uri else uri
    name = name.lower()
    if options.table and name.endswith((*TABLE_SUFFIXES, *LIST_SUFFIXES, *_READ_OTHERWISE)):
        raise UsageError(
            f"`table` names a file in a folder, and {uri} is a file. Give the table itself as the source."
        )
    if uri.startswith("pipe:") or name.endswith((*TAR_SUFFIXES, *LIST_SUFFIXES)):
        return _tars(uri, options)
    if name.endswith(".parquet") and is_url(uri) and "*" not in uri and is_folder(uri):  # as Spark names them
        return _of_url(uri, options)
    if name.endswith(TABLE_SUFFIXES) or (name.endswith(".parquet") and "*" not in uri and _names_images(uri, options)):
        return _table(uri, options)
    if name.endswith((".parquet", ".arrow")):
        return _dataset(uri, options)
    if is_url(uri):
        return _of_url(uri, options)
    if path.exists():
        raise SourceError(f"{uri} is a file of no known kind; {_KINDS}.")
    raise SourceError(f"There is no folder {uri}. Check the path (the current folder is {Path.cwd()}); {_KINDS}.")


def _of_folder(path: Path, options: SourceOptions) -> ListedSource:
    """A folder is a saved dataset, or holds images, or tars, or data files: the first of these that it is."""
    from .hf_open import data_files, is_saved

    if options.table:
        return _table(str(path / options.table), options)
    if is_saved(path):
        return _dataset(str(path), options)
    tree = LocalTree(path)
    if _any_images(tree, options):
        return FolderSource(tree, options)
    tars = tars_in(path)
    if tars:
        return _tars(tars, options)
    files = data_files(path)
    if len(files) == 1 and files[0].suffix.lower() == ".parquet" and _names_images(str(files[0]), options):
        return _table(str(files[0]), options)
    if files:
        return _dataset(str(path), options)
    return FolderSource(tree, options)  # its listing says what is there instead


def _of_url(url: str, options: SourceOptions) -> ListedSource:
    """A folder at a URL holds images, tars or data files: the first of these that it does, as the store says."""
    from .remote_tree import RemoteTree

    if options.table:
        return _table(join_url(url, options.table), options)
    if url.lower().startswith(WEB):
        raise SourceError(
            f"{without_secrets(url)} is no tar, list or table, and web servers don't list folders. Give a local table "
            "of URLs (.csv, .jsonl, .parquet), tars (https://host/{000..099}.tar), or a list of tars (.txt)."
        )
    tree, others = RemoteTree(url, options), []
    for folder in tree.walk(keep_root=True):
        if holds_images(tree, folder, any_suffix=options.any_suffix):
            return FolderSource(tree, options)
        others += [folder.prefix + name for name in folder.files if name.lower().endswith(_READ_OTHERWISE)]
    tars = pattern_of_tars(url.rstrip("/"), others)
    if tars:
        return _tars(tars, options)
    if others:
        return _of_data_files(url, tree, others, options)
    return FolderSource(tree, options)  # its listing says what is there instead


def _of_data_files(url: str, tree: RemoteTree, names: list[str], options: SourceOptions) -> ListedSource:
    """The files of a folder in a store that has been walked: one of paths or URLs, or some of images."""
    from .data_files import DataFile
    from .hf import HuggingFaceSource
    from .hf_stored import refuse_other_kinds

    refuse_other_kinds(tree.uri, names)
    places = {name: join_url(url, name) for name in sorted(names)}
    if len(names) == 1 and _names_images(places[names[0]], options):
        return _table(places[names[0]], options)
    told = {name: tree.stat(name) or (-1, -1) for name in names}
    return HuggingFaceSource(
        url.rstrip("/"), options, {name: DataFile(place, *told[name]) for name, place in places.items()}
    )


def _any_images(tree: LocalTree, options: SourceOptions) -> bool:
    try:
        return any(holds_images(tree, folder, any_suffix=options.any_suffix) for folder in tree.walk())
    except SourceError:  # a folder that can't be listed: listing says so
        return True


def _table(uri: str, options: SourceOptions) -> ListedSource:
    from .tables import TableSource

    return TableSource(uri, options)


def _names_images(uri: str, options: SourceOptions) -> bool:
    from .tables import names_images

    return names_images(uri, options)


def _tars(uri: str, options: SourceOptions) -> ListedSource:
    from .tars import TarSource

    return TarSource(uri, options)


def _dataset(uri: str, options: SourceOptions) -> ListedSource:
    from .hf import HuggingFaceSource

    return HuggingFaceSource(uri, options)
