"""Which sources and models this person has named on this machine: a cache is believed of no others.

A cache may come from anyone. The places it records are believed where the same person gave them to ``encode`` or to
an option before; their digests are kept in the user's state folder (XDG_STATE_HOME), a line each, and nothing of them
in the cache. Knows nothing of what the places hold.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..urls import without_secrets

_FILE = "named-places"


def remember(*places: str) -> None:
    """Note that this person has named these places. Where nothing can be written, they are asked again next time."""
    digests = [digest for place in places if (digest := _digest(place)) not in _remembered()]
    for folder in _folders() if digests else ():
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_ours(folder):
                with (folder / _FILE).open("a", encoding="ascii") as file:
                    file.write("".join(f"{digest}\n" for digest in digests))
                return


def is_known(place: str) -> bool:
    """Whether this person has named the place on this machine before."""
    return _digest(place) in _remembered()


def _digest(place: str) -> str:
    return hashlib.sha256(without_secrets(place).encode("utf-8", "surrogateescape")).hexdigest()


def _remembered() -> set[str]:
    found: set[str] = set()
    for folder in _folders():
        with suppress(OSError, UnicodeDecodeError):
            if _is_ours(folder):
                found |= set((folder / _FILE).read_text(encoding="ascii").split())
    return found


def _folders() -> Iterator[Path]:
    """Where it may be written, the usual place first; the second is for a home that can't be written to."""
    state = os.environ.get("XDG_STATE_HOME")
    with suppress(RuntimeError):  # no home
        yield (Path(state) if state else Path.home() / ".local" / "state") / "dcae-cache"
    if state is None:
        yield Path(tempfile.gettempdir()) / f"dcae-cache-{os.getuid()}"


def _is_ours(folder: Path) -> bool:
    """Others could have made a folder of that name where everybody may write."""
    status = folder.stat(follow_symlinks=False)
    return status.st_uid == os.getuid() and not status.st_mode & 0o022
