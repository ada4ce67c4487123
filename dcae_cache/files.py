"""Writing files so that a kill or a power cut leaves either the old file or the new one, never half of one.

Also the lock that keeps a second run out of a folder. Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import CacheError, CacheLockedError

_TEMPORARY = ".tmp"
LOCK_NAME = ".lock"


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling of ``path`` for writing; on success it is flushed to disk and renamed to ``path``.

    If the body raises, the temporary file is removed and ``path`` stays as it was. Raises CacheError for a full disk
    or a folder that can't be written.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CacheError(write_failed(path, error)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_path(path: Path) -> Path:
    """The hidden sibling of ``path`` that is written first. ``remove_temporary_files`` knows it."""
    return path.with_name(f".{path.name}{_TEMPORARY}")


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary_files(folder: Path) -> int:
    """Delete what a killed run left half-written in ``folder``; returns how many files. Only the lock's holder may."""
    leftovers = list(folder.glob(f".*{_TEMPORARY}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents; CacheError where that can't be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(write_failed(folder, error)) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; the system lets go of it when the process ends, however it ends.

    Raises CacheLockedError when another process holds it, naming that process.
    """
    path = folder / LOCK_NAME
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise CacheError(write_failed(path, error)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise CacheError(
                    f"Can't lock {folder}: {error.strerror}. Does its file system support locks?"
                ) from error
            raise CacheLockedError(
                f"Another run is writing to {folder} ({_holder(path)}). Wait for it, stop it, or choose another --out."
            ) from error
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"host {holder['host']}, pid {holder['pid']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "holder unknown"


def write_failed(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return (
            f"No space left on the disk of {path}. Free some and run the same command again: finished parts are kept."
        )
    return f"Can't write {path}: {error.strerror or error}. Check the folder's permissions and the disk."
