"""The locks that keep a second run out of a folder. Knows nothing of what the folder holds."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CacheError, CacheLockedError
from ..files import write_failed

LOCK_NAME = ".lock"


_WRITERS, _PLANNING, _JOB = ".lock-writers", ".lock-plan", ".lock-job-of-"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this run alone; the system lets go of it when the process ends, however it ends.

    Raises CacheLockedError when another run holds it, naming that process, or when a worker of a run that was killed
    has not noticed yet.
    """
    with _held(folder / LOCK_NAME, fcntl.LOCK_EX):
        writers = folder / _WRITERS
        if writers.exists():
            with _held(writers, fcntl.LOCK_EX):  # somebody still has it: then this raises
                pass
        yield


@contextmanager
def locked_as_worker(folder: Path) -> Iterator[None]:
    """Hold ``folder`` as one of the processes of a run: the next run waits for the last of them."""
    with _held(folder / _WRITERS, fcntl.LOCK_SH):
        yield


@contextmanager
def locked_with_others(folder: Path, number: int, count: int) -> Iterator[None]:
    """Hold ``folder`` together with other jobs, as the job ``number`` of ``count``; no other run gets in meanwhile.

    Raises CacheLockedError when a run has the folder for itself, when that job is running already, or while jobs of
    another count are.
    """
    with _held(folder / LOCK_NAME, fcntl.LOCK_SH):
        with planning(folder):
            for path in sorted(folder.glob(f"{_JOB}*")):
                if not path.name.startswith(f"{_JOB}{count}-"):
                    with _held(path, fcntl.LOCK_EX):  # a job of another count still has it: then this raises
                        pass
        with _held(folder / f"{_JOB}{count}-{number}", fcntl.LOCK_EX):
            yield


@contextmanager
def planning(folder: Path) -> Iterator[None]:
    """Be the only one to write the plan or the index of ``folder``; waits until it is free."""
    with _held(folder / _PLANNING, fcntl.LOCK_EX, wait=True):
        yield


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which is made where it isn't there; waits until it is free."""
    with _held(path, fcntl.LOCK_EX, wait=True):
        yield


@contextmanager
def _held(path: Path, mode: int, *, wait: bool = False) -> Iterator[None]:
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise CacheError(write_failed(path, error)) from error
    with file:
        try:
            fcntl.flock(file, mode | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise CacheError(
                    f"Can't lock {path.parent}: {error.strerror}. Does its file system support locks?"
                ) from error
            raise CacheLockedError(
                f"Another run is writing to {path.parent} ({_holder(path)}). Wait for it, stop it, or choose another "
                "`out`."
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
