"""A folder of fetched files on this machine: shared by all processes that read the same cache, held to a size.

A file is there whole, under its name, or not at all. Who fetches one holds a lock on its temporary file, so that
nobody fetches it twice; who was handed one holds a lock on it until it asks for the next, so that it isn't deleted
under its hands. The locks are the system's: a process that dies holds none. Knows nothing of where files come from.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import CacheError, one_line
from ..files import make_folder, sync_folder, temporary_path, write_failed

_LOCK = ".lock"
_ROOM = "room"  # the name under which whoever makes room is alone


class Mirror:
    """The files of one remote cache that are on this machine, at most ``limit`` bytes of them (None: no limit).

    The files used longest ago are deleted first. The limit is passed only where it is smaller than what the threads
    of all processes hold and fetch at one moment: one file each. Raises CacheError where the folder can't be written.
    """

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder, self.limit = folder, limit
        self._held = threading.local()
        make_folder(folder)

    def __reduce__(self) -> tuple[type[Mirror], tuple[Path, int | None]]:
        return Mirror, (self.folder, self.limit)

    def touch(self, name: str) -> bool:
        """Whether the file is there; if so, it counts as used just now."""
        try:
            os.utime(self.folder / name)
        except OSError:
            return False
        return True

    def hold(self, name: str, num_bytes: int | None) -> Path | None:
        """The file, which stays until this thread asks for another; None where it isn't there in this size."""
        path = self.folder / name
        self._held.file = None  # first: a thread holds one at a time
        try:
            held = _Held(os.open(path, os.O_RDONLY))
            if not held.is_at(path):  # deleted before it was locked
                return None
            if num_bytes not in (None, held.num_bytes):
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:
            return None
        self._held.file = held
        return path

    @contextmanager
    def filling(self, name: str, *, hold: bool) -> Iterator[BinaryIO | None]:
        """A file to write what is fetched to, which becomes ``name`` unless the body raises; None where another
        process or thread has brought it meanwhile. Waits for one that is at it. ``hold``: as by ``hold`` then."""
        path = self.folder / name
        try:
            with self._alone(name):
                if path.exists():
                    yield None
                    return
                with self._becoming(path, hold) as file:
                    yield file
        except OSError as error:
            raise CacheError(write_failed(path, error)) from error

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Be the only one on this machine in here with this name."""
        path = self.folder / f".{name}{_LOCK}"
        with _locked(path) as lock:
            try:
                yield
            finally:
                if name != _ROOM:
                    path.unlink(missing_ok=True)
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing isn't enough: a process forked meanwhile has it open, too

    @contextmanager
    def _becoming(self, path: Path, hold: bool) -> Iterator[BinaryIO]:
        """The temporary file of ``path``, locked so that nobody takes it for a dead process's, renamed at the end."""
        temporary = temporary_path(path)
        with _locked(temporary) as file:
            try:
                file.truncate(0)
                yield file
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
                sync_folder(self.folder)
                if hold:
                    self._held.file = _Held(os.dup(file.fileno()))  # its lock, weakened to a holder's
            except BaseException:
                temporary.unlink(missing_ok=True)
                hold = False
                raise
            finally:
                if not hold:
                    fcntl.flock(file, fcntl.LOCK_UN)

    def make_room(self, file: BinaryIO, num_bytes: int) -> None:
        """Delete files until ``num_bytes`` more fit, and give ``file``, from ``filling``, that size."""
        if self.limit is None:
            return
        with self._alone(_ROOM):
            self._delete_until(self.limit - num_bytes, Path(file.name))
            os.truncate(file.fileno(), num_bytes)  # so that others count it

    def _delete_until(self, limit: int, mine: Path) -> None:
        files: list[tuple[int, int, Path]] = []
        total = 0
        for entry in os.scandir(self.folder):
            path = Path(entry.path)
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if path == mine or path.suffix == _LOCK:
                continue
            if entry.name.startswith("."):
                total += 0 if _delete_unlocked(path) else status.st_size  # a killed process left it
            else:
                files.append((status.st_mtime_ns, status.st_size, path))
                total += status.st_size
        for _, size, path in sorted(files):
            if total <= limit:
                return
            if _delete_unlocked(path):
                total -= size


class _Held:
    """A file locked against deletion, for as long as this object lives in the process that made it."""

    def __init__(self, descriptor: int) -> None:
        self._process, self._descriptor = os.getpid(), descriptor
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        self.num_bytes = os.fstat(descriptor).st_size

    def is_at(self, path: Path) -> bool:
        return os.path.samestat(os.fstat(self._descriptor), os.stat(path))

    def __del__(self) -> None:
        if self._process == os.getpid():  # in a forked process the lock is still its parent's
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


def _locked(path: Path) -> BinaryIO:
    """The file at ``path``, made where it is missing and locked for this caller alone."""
    while True:
        file = open(path, "r+b", opener=_open_or_make)  # noqa: SIM115 - the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            file.close()
            raise CacheError(
                f"Can't lock {path}: {one_line(error)}. Choose a folder on a disk of this machine."
            ) from error
        if _is_at(file, path):
            return file
        file.close()  # renamed or deleted while this one waited


def _open_or_make(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _delete_unlocked(path: Path) -> bool:
    """Delete a file unless somebody has it locked; whether it is gone."""
    try:
        file = path.open("rb")
    except OSError:
        return True
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            if _is_at(file, path):
                path.unlink(missing_ok=True)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
