"""A tree of files as a source reads it, by names relative to its root: walked in sorted order, asked about, read.

``Tree`` is what every kind of tree can do; ``LocalTree`` is a folder of this machine (remote_tree.py: one at a URL).
Knows nothing of images or captions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from ..asking import answers
from ..errors import SampleSkipped, SourceError
from ..ledger import HIDDEN
from .local_files import open_image_file


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder as a walk comes by. ``prefix`` stands before its names: "" at the root, else "a/b/".

    ``files``: sorted names, without hidden ones. ``left_out``: how many files are not among them, by the kinds of the
    ledger. ``hidden_folders``: names whose files are left out too, to be counted by whoever wants to know.
    """

    prefix: str
    files: Sequence[str]
    left_out: Mapping[str, int]
    hidden_folders: Sequence[str]


class Tree(Protocol):
    """The files below a root. Names are relative to it, with slashes. Reading is safe on any thread."""

    uri: str  # the root as a plan records it: absolute, and without secrets
    shown: str  # and as messages call it

    def walk(self) -> Iterator[Folder]:
        """Every folder that isn't hidden, before the folders in it, these in sorted order; SourceError where one can't
        be listed."""
        ...

    def count_files(self, folder: str) -> int:
        """How many files a folder holds, at any depth."""
        ...

    def stat(self, name: str) -> tuple[int, int] | None:
        """(bytes, modification time in ns, or a number made of what else names a version) of a file, each -1 where
        that isn't told; None where there is no such file."""
        ...

    def stats(self, prefix: str, names: Iterable[str]) -> Iterator[tuple[int, int] | None]:
        """``stat`` of each of some files of one folder."""
        ...

    def heads(self, names: Iterable[str], count: int) -> Iterator[bytes]:
        """The first ``count`` bytes of each file, b"" of one that has none or isn't a regular file."""
        ...

    def open(self, name: str, max_bytes: int, listed: int) -> BinaryIO:
        """An image, of which no more than ``max_bytes`` are wanted. ``listed``: its bytes as they were listed, -1
        where unknown; trees that can't look again at no cost go by it.

        Raises SampleSkipped ("missing", "too_large", "unreadable", "timed_out"), and OSError that may pass.
        """
        ...

    def read_note(self, name: str, max_bytes: int) -> bytes | None:
        """A small file whole; None where there is none. Raises SampleSkipped ("too_large", "bad_caption")."""
        ...

    def open_metadata(self, name: str) -> BinaryIO:
        """A file to be read as a whole, in any order. Raises OSError or SourceError."""
        ...

    def below(self, place: str) -> str | None:
        """The name of a file that is given by its whole path or URL; None where that isn't in the tree."""
        ...

    def local_path(self, name: str) -> str | None:
        """Where a file lies on this machine, for another process to read it; None where it doesn't lie here."""
        ...

    def forget(self) -> None:
        """Drop what walks have left in memory: another process lists."""
        ...


class LocalTree:
    """A folder of this machine. Links are followed, and each folder is walked only once."""

    def __init__(self, root: Path) -> None:
        self.uri = os.path.abspath(root)
        self.shown = str(root)

    def walk(self) -> Iterator[Folder]:
        seen: set[tuple[int, int]] = set()
        pending = [(self.shown, "")]
        while pending:
            directory, prefix = pending.pop()
            try:
                info = os.stat(directory)
                if (info.st_dev, info.st_ino) in seen:
                    continue
                seen.add((info.st_dev, info.st_ino))
                found = _look_into(directory)
            except OSError as error:
                raise SourceError(
                    f"Can't list the folder {directory}: {error.strerror}. Make it readable, or leave it out."
                ) from error
            left_out = {HIDDEN: found.num_hidden} if found.num_hidden else {}
            yield Folder(prefix, found.files, left_out, found.hidden_folders)
            pending.extend((os.path.join(directory, name), f"{prefix}{name}/") for name in reversed(found.folders))

    def count_files(self, folder: str) -> int:
        return sum(len(names) for _, _, names in os.walk(self._path(folder)))

    def stat(self, name: str) -> tuple[int, int] | None:
        return _stat(self._path(name))

    def stats(self, prefix: str, names: Iterable[str]) -> Iterator[tuple[int, int] | None]:
        folder = os.path.join(self._path(prefix), "")
        return answers(_stat, (folder + name for name in names))

    def heads(self, names: Iterable[str], count: int) -> Iterator[bytes]:
        return answers(partial(_head, count), map(self._path, names))

    def open(self, name: str, max_bytes: int, listed: int) -> BinaryIO:
        return open_image_file(Path(self._path(name)), max_bytes)

    def read_note(self, name: str, max_bytes: int) -> bytes | None:
        path = Path(self._path(name))
        try:
            if not path.is_file():  # a device or a pipe would block, or have no end
                return None
            if path.stat().st_size > max_bytes:
                raise SampleSkipped("too_large", f"{path.name} has more than {max_bytes} bytes")
            return path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise SampleSkipped("bad_caption", f"{path.name}: {error.strerror}") from error

    def open_metadata(self, name: str) -> BinaryIO:
        return open(self._path(name), "rb")

    def below(self, place: str) -> str | None:
        start = os.path.join(self.uri, "")
        return place.removeprefix(start) if place.startswith(start) else None

    def local_path(self, name: str) -> str | None:
        return self._path(name)

    def forget(self) -> None:
        """Nothing is kept."""

    def _path(self, name: str) -> str:
        return os.path.join(self.shown, name)


def is_inside(name: str) -> bool:
    """Whether a name is one of a file below the root, whatever a plan says."""
    return not name.startswith("/") and ".." not in name.split("/")


def _stat(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except (OSError, ValueError):  # a broken or circular link, say, or a name that no file can have
        return None
    return info.st_size, info.st_mtime_ns


def _head(count: int, path: str) -> bytes:
    try:
        if not os.path.isfile(path):
            return b""
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


@dataclass(slots=True)
class _Found:
    """What a folder of this machine holds: sorted names."""

    files: list[str]
    folders: list[str]
    hidden_folders: list[str]
    num_hidden: int = 0


def _look_into(directory: str) -> _Found:
    """Raises OSError. Names alone are kept: a folder may hold millions."""
    found = _Found([], [], [])
    files = found.files
    with os.scandir(directory) as listing:
        for entry in listing:
            name = entry.name
            if name[0] == ".":
                if entry.is_dir(follow_symlinks=False):
                    found.hidden_folders.append(name)
                else:
                    found.num_hidden += 1
            elif _is_folder(entry):
                found.folders.append(name)
            else:
                files.append(name)
    for names in (files, found.folders, found.hidden_folders):
        names.sort()
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False
