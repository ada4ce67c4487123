"""Shards of a part that were moved to a store: a note in their place says how large they are.

The table of such a part stays, so the part counts as committed. Knows nothing of the store.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CacheError
from ..files import replace_atomically
from .parts import PARTS_FOLDER, shard_path

_SUFFIX = ".away"


def _note_path(cache: Path, name: str) -> Path:
    return cache / PARTS_FOLDER / f".{name}{_SUFFIX}"


def shard_num_bytes(cache: Path, name: str) -> int | None:
    """The size of a part's shard, here or where it was moved to; None where there is none."""
    for path in (shard_path(cache, name), _note_path(cache, name)):
        try:
            return path.stat().st_size if path.suffix != _SUFFIX else int(path.read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise CacheError(f"{path} can't be read: {error}. Remove it and run the same command again.") from error
    return None


def note_away(cache: Path, name: str, num_bytes: int) -> None:
    """Note that the shard lies in the store, then remove the one here."""
    with replace_atomically(_note_path(cache, name)) as file:
        file.write(b"%d" % num_bytes)
    shard_path(cache, name).unlink(missing_ok=True)


def forget_away(cache: Path) -> None:
    """Remove all notes: the store has been asked anew, or the cache is deleted."""
    for path in (cache / PARTS_FOLDER).glob(f".part-*{_SUFFIX}"):
        path.unlink()
