"""Writing files so that a kill or a power cut leaves either the old file or the new one, never half of one.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from .errors import CacheError

_TEMPORARY = ".tmp"


def new_file(path: Path) -> BinaryIO:
    """Open a file that isn't there for writing. One that is there is removed first, and a link not written through: it
    may lead anywhere."""
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling of ``path`` for writing; on success it is flushed to disk and renamed to ``path``.

    If the body raises, the temporary file is removed and ``path`` stays as it was. Raises CacheError for a full disk
    or a folder that can't be written.
    """
    temporary = temporary_path(path)
    try:
        with new_file(temporary) as file:
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


def remove_temporary_files(folder: Path, concerns: Callable[[str], bool] = lambda name: True) -> int:
    """Delete what a killed run left half-written in ``folder``; returns how many files. Only the lock's holder may.

    ``concerns`` tells, by the file's name without its leading dot, which ones are the caller's to delete.
    """
    leftovers = [path for path in folder.glob(f".*{_TEMPORARY}") if concerns(path.name[1:])]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents; CacheError where that can't be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(write_failed(folder, error)) from error


def write_failed(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return (
            f"No space left on the disk of {path}. Free some and run the same command again: finished parts are kept."
        )
    return f"Can't write {path}: {error.strerror or error}. Check the folder's permissions and the disk."


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, unless it is a device or a pipe: those block, or have no end. Raises OSError."""
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def sha256_of_file(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
