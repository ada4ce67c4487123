"""One run at a time for a cache in an object store: a small file there, written only if it isn't there.

It says who holds it and since when it was last seen alive, so that the lock of a killed run doesn't last. Knows
nothing of what the store holds.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import CacheError, CacheLockedError
from ..object_store import ObjectStore

LOCK_NAME = ".lock.json"
_BEAT_SECONDS = 60.0
_STALE_SECONDS = 600.0  # without a beat: its run is gone


@contextmanager
def store_locked(store: ObjectStore, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the store's folder for this run alone. Raises CacheLockedError where another run has it.

    Where the store can't write on a condition, ``notify`` hears that nothing keeps others out.
    """
    own = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    _take(store, own)
    if _create(store, own):  # a second time: the store doesn't mind that it is there
        notify(
            f"{store.name} can't tell whether a file is there when it writes one, so nothing keeps a second run on "
            "another machine out. Start one at a time."
        )
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(store, own, over), name="lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        with suppress(CacheError):  # it goes stale
            if _holder(store).get("id") == own["id"]:
                store.delete([LOCK_NAME])


def _take(store: ObjectStore, own: dict[str, Any]) -> None:
    if _create(store, own):
        return
    holder = _holder(store)
    if not _is_gone(holder):
        raise CacheLockedError(
            f"Another run is writing to {store.name} (host {holder.get('host')}, pid {holder.get('pid')}). Wait for "
            f"it, stop it, or choose another `out`. If it is gone, its lock ends {_STALE_SECONDS / 60:.0f} minutes "
            "after its last sign of life."
        )
    store.delete([LOCK_NAME])
    if not _create(store, own):
        raise CacheLockedError(f"Another run has just begun to write to {store.name}. Wait for it, or stop it.")


def _create(store: ObjectStore, own: dict[str, Any]) -> bool:
    return store.create(LOCK_NAME, json.dumps(own | {"time": time.time()}).encode())


def _holder(store: ObjectStore) -> dict[str, Any]:
    try:
        found = json.loads(store.read(LOCK_NAME) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the run that wrote the lock is certainly over."""
    since = holder.get("time")
    if not isinstance(since, int | float) or time.time() - since > _STALE_SECONDS:
        return True
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _beat(store: ObjectStore, own: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(_BEAT_SECONDS):
        with suppress(CacheError):  # the next beat may get through
            store.replace(LOCK_NAME, json.dumps(own | {"time": time.time()}).encode())
