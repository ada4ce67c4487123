"""A cache whose home is an object store: written part by part in a folder here, sent, checked, and then removed here.

The store holds the truth: a run begins with what is there. Files arrive in the order in which they are committed here:
plan, then of each part shard and table, at last skipped.jsonl and the index. Knows nothing of how parts are made.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..cache.away import forget_away, note_away
from ..cache.commits import delete_cache
from ..cache.index import INDEX_NAME
from ..cache.ledger_file import LEDGER_NAME, STAMPS_NAME
from ..cache.locks import locked
from ..cache.parts import PARTS_FOLDER, read_part_info, shard_path, table_path
from ..cache.plan import PLAN_NAME
from ..config import RunOptions
from ..errors import UsageError
from ..files import make_folder, remove_temporary_files, sha256_of_file
from ..object_store import ObjectStore, StoredFile
from ..records import part_number
from .distributed import ProcessRank
from .store_lock import store_locked

SKIPPED_NAME = "skipped.jsonl"
_DERIVED = (SKIPPED_NAME, LEDGER_NAME, STAMPS_NAME, INDEX_NAME)  # the index last
_THREADS, _BACKLOG = 2, 4  # parts sent at a time, and those waiting or being sent
_FETCHERS = 8


def scratch_folder(url: str, scratch: str | None) -> Path:
    """Where the cache at ``url`` is written before it is sent: a folder of its own in ``scratch``, or in
    ~/.cache/dcae-cache (or $XDG_CACHE_HOME/dcae-cache)."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcae-cache" / "scratch"
    return Path(scratch or home) / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


class StoreOut:
    """The home of a run's cache, ``folder`` being the folder it is written in here.

    Of no use to a run whose cache stays where it is written: there ``url`` is None, and nothing is done.
    """

    def __init__(self, url: str | None, folder: Path) -> None:
        self._store = ObjectStore(url) if url is not None else None
        self._folder = folder

    @contextmanager
    def opened(self, notify: Callable[[str], None]) -> Iterator[StoreOut]:
        """Hold the store for this run, and bring the folder to what it holds."""
        if self._store is None:
            yield self
            return
        hold = self._folder / ".store"
        make_folder(hold)
        make_folder(self._folder / PARTS_FOLDER)
        with locked(hold), store_locked(self._store, notify):
            self._begin(self._store)
            yield self

    def send_plan(self) -> None:
        """The plan, before any part of it."""
        if self._store is not None:
            self._send_if_changed(self._store, [PLAN_NAME])

    def clear(self) -> None:
        """Delete the cache in the store, first what says that parts are whole."""
        if self._store is None:
            return
        there = self._store.files()
        parts = sorted((name for name in there if _is_of_a_part(name)), key=lambda name: name.endswith(".safetensors"))
        self._store.delete([*(name for name in (*reversed(_DERIVED), PLAN_NAME) if name in there), *parts])
        forget_away(self._folder)

    def finish(self) -> None:
        """Send tables that were changed, remove parts that aren't planned any more, then send what is derived."""
        if self._store is None:
            return
        here = sorted(path.name for path in (self._folder / PARTS_FOLDER).glob("part-*.parquet"))
        self._send_if_changed(self._store, [PLAN_NAME, *(f"{PARTS_FOLDER}/{name}" for name in here)])
        whole = {Path(name).stem for name in here}
        stale = [name for name in self._store.files() if _is_of_a_part(name) and Path(name).stem not in whole]
        self._store.delete(sorted(stale))  # "parquet" before "safetensors"
        self._send_if_changed(self._store, list(_DERIVED))

    def _begin(self, store: ObjectStore) -> None:
        """Make the folder what the store is, and keep the parts that were finished here, but not sent."""
        there = store.files()
        forget_away(self._folder)
        remove_temporary_files(self._folder)
        remove_temporary_files(self._folder / PARTS_FOLDER)
        for name in _DERIVED:
            (self._folder / name).unlink(missing_ok=True)
            if name in there and PLAN_NAME in there:
                store.fetch(name, self._folder / name)
        if PLAN_NAME not in there:
            delete_cache(self._folder)
            return
        store.fetch(PLAN_NAME, self._folder / PLAN_NAME)
        self._send_unsent(store)
        with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch") as pool:
            there = store.files()
            tables = [name for name in there if _is_of_a_part(name) and name.endswith(".parquet")]
            for done in [pool.submit(self._take_over, store, there, name) for name in tables]:
                done.result()

    def _send_unsent(self, store: ObjectStore) -> None:
        """Parts that were finished here when the last run was killed. Half a part is dropped."""
        for shard in sorted((self._folder / PARTS_FOLDER).glob("part-*.safetensors")):
            info = read_part_info(self._folder, shard.stem)
            if info is not None and sha256_of_file(shard) == info.shard_sha256:
                send_part(store, self._folder, shard.stem)
            shard.unlink(missing_ok=True)

    def _take_over(self, store: ObjectStore, there: dict[str, StoredFile], name: str) -> None:
        """Have a part's table here, and its shard's note, where the store holds both."""
        part, here = Path(name).stem, self._folder / name
        shard = there.get(f"{PARTS_FOLDER}/{part}.safetensors")
        if not (here.exists() and store.holds(there[name], here)):
            store.fetch(name, here)
        if shard is not None:
            note_away(self._folder, part, shard.num_bytes)

    def _send_if_changed(self, store: ObjectStore, names: list[str]) -> None:
        there = store.files()
        for name in names:
            path = self._folder / name
            if path.exists() and not store.holds(there.get(name), path):
                store.put(path, name)


class PartSender:
    """Sends parts that have been committed, on threads of its own. ``url`` None: they stay where they are.

    ``add`` waits while too many are on their way, so that the folder stays small; what went wrong with one is raised
    by the next ``add`` or at the end.
    """

    def __init__(self, url: str | None, folder: Path) -> None:
        self._store = ObjectStore(url) if url is not None else None
        self._folder = folder
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="send")
        self._free = threading.BoundedSemaphore(_BACKLOG)
        self._sending: list[Future[None]] = []

    def __enter__(self) -> PartSender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self._raise_failures(self._sending)

    def add(self, part: str) -> None:
        """Send a part that is committed here. Raises CacheError where an earlier one couldn't be sent."""
        if self._store is None:
            return
        done = [sending for sending in self._sending if sending.done()]
        self._sending = [sending for sending in self._sending if not sending.done()]
        self._raise_failures(done)
        self._free.acquire()
        self._sending.append(self._pool.submit(self._send, self._store, part))

    def _send(self, store: ObjectStore, part: str) -> None:
        try:
            send_part(store, self._folder, part)
        finally:
            self._free.release()

    @staticmethod
    def _raise_failures(done: list[Future[None]]) -> None:
        for sending in done:
            sending.result()


def refuse_unfit_options(options: RunOptions, own: ProcessRank | None) -> None:
    """Raise UsageError for what only a cache in a folder can have: its writers share that folder."""
    if own is not None and own.world_size > 1:
        raise UsageError(
            "A cache in an object store is written by the processes of one machine, which encode starts itself, one "
            "for each GPU: run it without a launcher."
        )
    if options.part_range is not None:
        raise UsageError("`part_range` needs a folder that all jobs share, so `out` can't be in an object store.")
    if options.repair:
        raise UsageError(
            "`repair` needs the shards at hand, so `out` can't be in an object store. Run verify on it, delete the "
            "table of each broken part there, and run encode again: it makes these parts anew."
        )


def send_part(store: ObjectStore, folder: Path, part: str) -> None:
    """Send a committed part, its shard first, then drop the shard here."""
    shard = shard_path(folder, part)
    for path in (shard, table_path(folder, part)):
        store.put(path, f"{PARTS_FOLDER}/{path.name}")
    note_away(folder, part, shard.stat().st_size)


def _is_of_a_part(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder == PARTS_FOLDER and file.startswith("part-") and part_number(file) >= 0
