"""Which tars a path, a URL, a pattern, a list or a folder names. Opens only lists. Knows nothing of what tars hold."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ..errors import SourceError, UsageError
from ..urls import is_url
from .commands import PIPE
from .fetching import matching_files, read_file, refuse_foreign_place

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tzst")
_MAX_LIST_BYTES = 2**28
LIST_SUFFIXES = (".txt", ".list")


def named_tars(uri: str, *, allow_commands: bool) -> list[str]:
    """The tars in the order they were named, those of a pattern sorted.

    Raises SourceError where a pattern matches none, UsageError for a command unless commands are allowed.
    """
    from webdataset.shardlists import expand_urls

    if (uri.partition("?")[0] if is_url(uri) else uri).endswith(LIST_SUFFIXES) and not uri.startswith(PIPE):
        patterns: Sequence[str] = _lines(uri)
    elif not is_url(uri) and Path(uri).exists():  # a name with braces or stars in it
        return [uri]
    else:
        patterns = [uri]
    tars: list[str] = []
    for pattern in patterns:
        if pattern.startswith(PIPE):
            refuse_command(pattern, allow_commands)
            tars += expand_urls(pattern)
            continue
        found = [tar for name in expand_urls(pattern) for tar in matching_files(name)]
        if not found:
            raise SourceError(f"No tar matches {pattern}. Check the pattern, and quote it so the shell keeps it.")
        tars += found
    return tars


def refuse_command(command: str, is_allowed: bool) -> None:
    """Raise UsageError for a shell command, unless commands are allowed."""
    if not is_allowed:
        raise UsageError(f"{command} would run a shell command. Pass `allow_pipe` if that is what you want.")


def tars_in(folder: Path) -> str | None:
    """A pattern of the tars in a folder tree, None where there are none. Raises SourceError where some are compressed
    and some not, or each in its own way."""
    return pattern_of_tars(str(folder), [str(path.relative_to(folder)) for path in folder.rglob("*")])


def pattern_of_tars(folder: str, names: Iterable[str]) -> str | None:
    """The same for a folder, or its URL, whose files are known by their names below it."""
    tars = [path for path in map(PurePosixPath, names) if not path.name.startswith(".") and _suffix(path.name)]
    found = sorted({_suffix(path.name) for path in tars})
    if len(found) > 1:
        patterns = ", ".join(f"'{folder}/**/*{suffix}'" for suffix in found)
        raise SourceError(f"{folder} holds tars of several kinds. Choose one: {patterns}.")
    if not found:
        return None
    is_flat = all(len(path.parts) == 1 for path in tars)
    return f"{folder}/*{found[0]}" if is_flat else f"{folder}/**/*{found[0]}"


def _suffix(name: str) -> str:
    return next((suffix for suffix in reversed(TAR_SUFFIXES) if name.lower().endswith(suffix)), "")


def tar_stem(tar: str) -> str:
    """ "data/00012.tar.gz" -> "00012"."""
    name = PurePosixPath(tar.partition("?")[0] if is_url(tar) else tar).name
    return next((name.removesuffix(suffix) for suffix in reversed(TAR_SUFFIXES) if name.endswith(suffix)), name)


def _lines(place: str) -> list[str]:
    """What a list of tars names: a line each, relative to the list, ``#`` for remarks."""
    text = read_file(place, _MAX_LIST_BYTES).decode("utf-8-sig", "replace")
    lines = [line.strip() for line in text.splitlines()]
    named = [line for line in lines if line and not line.startswith("#")]
    if not named:
        raise SourceError(f"{place} names no tars; expected one path or URL a line.")
    if is_url(place):
        for line in named:
            refuse_foreign_place(line, place)
    base = place.partition("?")[0].rpartition("/")[0] if is_url(place) else os.path.dirname(place)
    keep = (is_url, os.path.isabs, lambda line: line.startswith(PIPE))
    return [line if any(test(line) for test in keep) else f"{base}/{line}" for line in named]
