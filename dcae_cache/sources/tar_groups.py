"""Members of a tar to samples: those whose names agree up to a dot, which is the first or the last one.

webdataset cuts at the first dot of a file's name. Where all names of such a group hold more dots, and cutting there
would put several images into one sample, or part an image from its caption, they are cut at the last dot instead.
Knows nothing of archives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from ..images.formats import IMAGE_SUFFIXES
from .tar_members import TooLarge

IMAGE_KINDS = ("jpg", "jpeg", "png", "webp", "avif", *(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES)))
MOST_HELD = 64  # members of one group before it is cut: a sample has few, and those of a tar needn't fit in memory


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar, its name as UTF-8 text."""

    name: str
    data: bytes | TooLarge = field(repr=False)


@dataclass(slots=True)
class Group:
    """The members of one sample, by suffix in lower case."""

    key: str
    members: dict[str, bytes | TooLarge] = field(default_factory=dict)


class RepeatedNameError(ValueError):
    """Two members of one sample have the same suffix; says their name."""


def first_key(name: str) -> str | None:
    """A name up to the first dot of its last part, as webdataset cuts it; None where it has none."""
    return _cut_first(name)[0]


def cut(held: Sequence[Member], split: Literal["first", "last"] | None) -> tuple[list[Group], bool]:
    """The samples that members with the same ``first_key`` make, and whether the last dot ended their keys.

    Raises RepeatedNameError.
    """
    suffixes = [suffix.lower() for member in held if (suffix := _cut_first(member.name)[1]) is not None]
    by_last = split == "last" or (split is None and _have_dots_in_keys(suffixes))
    groups: dict[str, Group] = {}
    for member in held:
        key, suffix = _cut_last(member.name) if by_last else _cut_first(member.name)
        if key is None or suffix is None:
            continue
        group = groups.setdefault(key, Group(key))
        if suffix.lower() in group.members:
            raise RepeatedNameError(member.name)
        group.members[suffix.lower()] = member.data
    return list(groups.values()), by_last


def members_of(group: Group) -> list[Member]:
    """The inverse of cutting."""
    return [Member(f"{group.key}.{suffix}", data) for suffix, data in group.members.items()]


def image_kind(members: Sequence[str] | dict[str, bytes | TooLarge], wanted: str | None) -> str | None:
    """The suffix that holds the image: the one named, else a known one, else the only one that ends in a known one
    ("photo.jpg")."""
    if wanted:
        return wanted if wanted in members else None
    for kind in IMAGE_KINDS:
        if kind in members:
            return kind
    ending = [suffix for suffix in members if suffix.rpartition(".")[2] in IMAGE_KINDS]
    return ending[0] if len(ending) == 1 else None


def _have_dots_in_keys(suffixes: Sequence[str]) -> bool:
    if not suffixes or not all("." in suffix for suffix in suffixes):
        return False
    images = {start for start, _, kind in _parts(suffixes) if kind in IMAGE_KINDS}
    others = {start for start, _, kind in _parts(suffixes) if kind not in IMAGE_KINDS}
    return len(images) > 1 or bool(images & others)


def _parts(suffixes: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    return (suffix.rpartition(".") for suffix in suffixes)


def _cut_first(name: str) -> tuple[str | None, str | None]:
    from webdataset.tariterators import base_plus_ext

    return cast("tuple[str | None, str | None]", base_plus_ext(name))


def _cut_last(name: str) -> tuple[str | None, str | None]:
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return (f"{folder}{slash}{stem}", suffix) if dot and stem else (None, None)
