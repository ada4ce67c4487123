"""A cache at a URL for who works on files: what is small is brought into a folder here, a shard when it is wanted.

A cache in a folder is left where it is. Files are taken as they lie there, damaged or missing ones too, for those who
check and mend caches, and they last as long as one command. Training needs the opposite of each, so it reads through
the reader's RemoteStore: what arrives must be what the index says, and is kept, within a limit, for all processes.
Both fetch through remote.py. Knows nothing of what is done with the files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..errors import CacheError
from ..files import make_folder, replace_atomically
from ..object_store import ObjectStore
from ..urls import is_url, without_secrets
from .index import INDEX_NAME, load_index
from .ledger_file import LEDGER_NAME, STAMPS_NAME
from .parts import PARTS_FOLDER, shard_path, table_path
from .plan import PLAN_NAME

_SMALL = (PLAN_NAME, "skipped.jsonl", LEDGER_NAME, STAMPS_NAME)  # beside the index; some may not be there
_FETCHERS = 8


class BroughtCache:
    """A cache whose index, tables and other small files lie in ``folder``; ``name`` is what its user calls it."""

    def __init__(self, folder: Path, name: str, store: ObjectStore | None) -> None:
        self.folder, self.name, self._store = folder, name, store

    @contextmanager
    def shard(self, part: str) -> Iterator[None]:
        """Have a part's shard in the folder while the block runs. One that isn't at the URL isn't there either."""
        path = shard_path(self.folder, part)
        if self._store is None or path.exists():
            yield
            return
        self._store.fetch_if_there(f"{PARTS_FOLDER}/{path.name}", path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def keep(self, parts: Iterable[str]) -> None:
        """Have the shards of these parts in the folder from now on. Raises CacheError where one can't be had."""
        for part in dict.fromkeys(parts):
            path = shard_path(self.folder, part)
            if self._store is not None and not path.exists():
                self._store.fetch(f"{PARTS_FOLDER}/{path.name}", path)


@contextmanager
def brought(cache: str | Path, *, with_tables: bool = True) -> Iterator[BroughtCache]:
    """The cache in a folder or at a URL; what was fetched is removed in the end.

    Raises CacheError where there is no cache, or it can't be reached.
    """
    url = str(cache)
    if not is_url(url):
        yield BroughtCache(Path(cache), url, None)
        return
    store = ObjectStore(url)
    with tempfile.TemporaryDirectory(prefix="dcae-cache-") as scratch:
        folder = Path(scratch) / (store.name.rpartition("/")[2].partition("?")[0] or "cache")
        make_folder(folder / PARTS_FOLDER)
        _bring(store, folder, with_tables)
        yield BroughtCache(folder, without_secrets(url), store)


def _bring(store: ObjectStore, folder: Path, with_tables: bool) -> None:
    index = store.read(INDEX_NAME)
    if index is None:
        raise CacheError(f"{store.name} is not a finished cache: it has no {INDEX_NAME}. Check the address.")
    with replace_atomically(folder / INDEX_NAME) as file:
        file.write(index)
    for name in _SMALL:
        store.fetch_if_there(name, folder / name)
    if not with_tables:
        return
    with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch") as pool:
        paths = [table_path(folder, part["name"]) for part in load_index(folder)["parts"]]
        for done in [pool.submit(store.fetch_if_there, f"{PARTS_FOLDER}/{path.name}", path) for path in paths]:
            done.result()
