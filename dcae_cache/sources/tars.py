"""Input tars in the layout of the webdataset library: a sample is the members whose names agree up to a dot.

One tar is one entry and one part. It is read from front to back, a sample at a time, from a disk, a URL or a command's
output. Knows nothing of pixels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from io import BytesIO
from itertools import islice
from typing import Any, BinaryIO, Literal, cast

from ..errors import SampleSkipped, SourceError
from ..ledger import HIDDEN, NO_SUFFIX, RESOURCE_FORK, Counts, SourceCounts
from ..records import Entry, Notes, Part, Sample, SampleRef
from ..remote import file_size_and_version, open_file
from ..urls import is_url, without_secrets
from .base import DAMAGED, NOTES_OPTIONS, NothingFound, SourceOptions, too_large
from .beside import Beside, FieldSearch, note_kinds
from .commands import PIPE, CommandOutput
from .folder import path_to_location, time_in_64_bits
from .tar_groups import (
    IMAGE_KINDS,
    MOST_HELD,
    Group,
    Member,
    RepeatedNameError,
    cut,
    first_key,
    image_kind,
    members_of,
)
from .tar_members import DAMAGE, LinkedMembers, NoEndMark, TooLarge, first_name, walk_members
from .tar_names import named_tars, refuse_command, tar_stem

_META = re.compile(r"(^|.*/)__[^/]*__($|/)")  # webdataset's own bookkeeping
_RESOURCES = "__MACOSX"


class TarSource(NothingFound):
    """Tars named by a path, a URL, a pattern with braces or ``*``, or a text file with one of these a line."""

    entries_per_part: int | None = 1
    kind: str = "input tars"
    honours: frozenset[str] = frozenset((*NOTES_OPTIONS, "image_column", "allow_pipe", "key", "key_split"))

    def __init__(self, uri: str, options: SourceOptions) -> None:
        self._options = options
        self._met = SourceCounts()
        is_path = not is_url(uri) and not uri.startswith(PIPE)
        self._asked = os.path.abspath(uri) if is_path else uri  # with what is secret in it: never written or shown
        self.uri = without_secrets(self._asked)

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        """The tars in the order they were named, those of a pattern sorted.

        Raises SourceError for one that isn't there, for tars whose keys repeat and for a field that the options name
        but no sample has; UsageError for a command unless commands are allowed.
        """
        left, tars = limit, self._tars()
        self._refuse_repeated_keys(tars)
        self._refuse_missing_fields(tars)
        for tar in tars:
            if left is None:
                yield self._entry(tar, None)
                continue
            found = sum(1 for _ in islice(self._samples(tar, None, Counts()), left + 1))
            yield self._entry(tar, left if found > left else None)
            left -= found
            if left <= 0:
                return

    def read(self, part: Part) -> Iterator[SampleRef]:
        counts = Counts()
        for entry in part.entries:
            if entry.location not in self._places:  # whatever a plan says
                raise SourceError(
                    f"{entry.location} is not among the tars of {self.uri}. Give the source that has it."
                )
            yield from self._samples(self._places[entry.location], entry.max_samples, counts)
        self._met.parts[part.number] = counts

    def _tars(self) -> list[str]:
        return named_tars(self._asked, allow_commands=self._options.allow_pipe)

    @cached_property
    def _places(self) -> dict[str, str]:
        """The tars by their names without secrets, which is what plans and tables say."""
        return {without_secrets(tar): tar for tar in self._tars()}

    def counts(self) -> SourceCounts:
        return self._met

    def _refuse_repeated_keys(self, tars: Sequence[str]) -> None:
        """Of local tars the first names are compared: where two agree, every tar most likely begins anew."""
        names: dict[str, str] = {}
        for tar in tars:
            if self._options.key == "shard":
                name: str | None = tar_stem(tar)
            else:
                name = None if is_url(tar) or tar.startswith(PIPE) else first_name(tar)
            if name is None:
                continue
            other = names.setdefault(name, tar)
            if other == tar:
                continue
            if self._options.key == "shard":
                raise SourceError(f"Two tars have the name {name}: {other} and {tar}. Rename one of them.")
            raise SourceError(
                f"Two samples have the key {first_key(name)!r}: {other}/{name} and {tar}/{name}. If every tar begins "
                "its keys anew, put the tar's name before them with `key` shard; else leave one of the two out."
            )

    def _refuse_missing_fields(self, tars: Sequence[str]) -> None:
        """Read samples until all fields that were named have been found: most often one. Of remote tars only the first
        is looked through, and commands aren't run for it."""
        search = FieldSearch(self._options)
        tars = [
            tar for number, tar in enumerate(tars) if not tar.startswith(PIPE) and (number == 0 or not is_url(tar))
        ]
        for tar in tars if not search.is_over else ():
            with self._open(tar) as file:
                for group in self._groups(tar, file, [], Counts()):
                    with suppress(SampleSkipped):
                        search.look_at(self._fields(group, image_kind(group.members, self._options.image_column)))
                    if search.is_over:
                        return
        if tars:
            search.refuse_missing(self.uri)

    def _entry(self, tar: str, max_samples: int | None) -> Entry:
        is_command, name = tar.startswith(PIPE), without_secrets(tar)
        num_bytes, version = (-1, -1) if is_command else file_size_and_version(tar, self._options.user_agent)
        return Entry(name, name, num_bytes, time_in_64_bits(version), max_samples)

    def _samples(self, tar: str, count: int | None, counts: Counts) -> Iterator[SampleRef]:
        damage: list[str] = []
        seen: set[str] = set()
        with self._open(tar) as file:
            for group in islice(self._groups(tar, file, damage, counts), count):
                if group.key in seen:
                    raise SourceError(
                        f"{tar}: the members of sample {group.key!r} don't stand together. Make the tar again with "
                        "tar --sort=name, which puts them side by side."
                    )
                seen.add(group.key)
                yield self._ref(without_secrets(tar), group, counts)
            if damage:
                yield _broken_off(without_secrets(tar), damage[0])

    def _groups(self, tar: str, file: BinaryIO, damage: list[str], counts: Counts) -> Iterator[Group]:
        """The samples in order. Where the archive is damaged this ends, and ``damage`` holds the reason; what belongs
        to the sample that was cut is left out."""
        # A sample's members are held back until the next sample has begun, or the archive has ended as it should.
        held: list[Member] = []
        last: Group | None = None
        forced: Literal["last"] | None = None  # a group too large to be held as a whole was cut so

        def room(name: str) -> int:
            """Bytes that are left for a member, of those that its sample may have."""
            same = bool(held) and first_key(held[0].name) == first_key(path_to_location(name))
            return self._options.max_bytes - sum(len(member.data) for member in held if same)

        try:
            for member in self._members(tar, file, counts, room):
                is_next = bool(held) and first_key(held[0].name) != first_key(member.name)
                if is_next or len(held) >= MOST_HELD:
                    groups, by_last = self._cut(tar, held, forced, counts)
                    forced = "last" if by_last and not is_next else None
                    held = [] if is_next else members_of(groups.pop())
                    last = groups[-1] if groups else last
                    yield from groups
                held.append(member)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk or the network, not the archive
                raise SourceError(f"Can't read {tar}: {error.strerror}. Run the same command again later.") from error
            groups, _ = self._cut(tar, held, forced, counts)
            has_all = last is not None and groups and groups[-1].members.keys() == last.members.keys()
            if not has_all and not (isinstance(error, NoEndMark) and last is None):
                groups = groups[:-1]
            yield from groups
            damage.append(f"{tar} is damaged after {file.tell()} bytes: {' '.join(str(error).split())}")
            return
        yield from self._cut(tar, held, forced, counts)[0]

    def _members(self, tar: str, file: BinaryIO, counts: Counts, room: Callable[[str], int]) -> Iterator[Member]:
        """The files of the archive that may belong to a sample; the others are counted."""
        links = None if is_url(tar) or tar.startswith(PIPE) else LinkedMembers(tar)
        try:
            content = partial(links.content, max_bytes=self._options.max_bytes) if links else lambda name: None
            for name, data in walk_members(file, content, room):
                base = name.rpartition("/")[2]
                if base.startswith("._") or _RESOURCES in name.split("/"):
                    counts.ignore(RESOURCE_FORK)
                elif data is None:
                    counts.ignore("link")
                elif base.startswith(".") or _META.match(name):
                    counts.ignore(HIDDEN)
                elif first_key(name) is None:
                    counts.ignore(NO_SUFFIX)
                else:
                    yield Member(path_to_location(name), data)
        finally:
            if links:
                links.close()

    def _cut(
        self, tar: str, held: Sequence[Member], forced: Literal["last"] | None, counts: Counts
    ) -> tuple[list[Group], bool]:
        wanted = self._options.key_split or forced or ("first" if self._options.image_column else None)
        try:
            groups, by_last = cut(held, wanted)
        except RepeatedNameError as error:
            raise SourceError(f"{tar} holds two members of one name: {error}. Make the tar again.") from error
        if by_last and self._options.key_split is None:
            counts.split += len(groups)
        return groups, by_last

    def _open(self, tar: str) -> BinaryIO:
        if tar.startswith(PIPE):
            refuse_command(tar, self._options.allow_pipe)
            return cast(BinaryIO, CommandOutput(tar.removeprefix(PIPE)))
        return open_file(tar, self._options.user_agent)

    def _ref(self, tar: str, group: Group, counts: Counts) -> SampleRef:
        kind = image_kind(group.members, self._options.image_column)
        key = f"{tar_stem(tar)}/{group.key}" if self._options.key == "shard" else group.key
        source = f"{tar}/{group.key}.{kind}" if kind else f"{tar}/{group.key}"
        size = sum(len(data) for data in group.members.values())
        self._count(group, kind, counts)
        notes = partial(self._notes, group, kind)
        load = partial(self._sample, tar, key, source, group, kind)
        return SampleRef(key, source, load, lambda: BytesIO(self._content(group, kind)), notes, size)

    def _content(self, group: Group, suffix: str | None) -> bytes:
        """A member's bytes, b"" where there is none; SampleSkipped where they were too many to be read."""
        data = group.members[suffix] if suffix else b""
        if isinstance(data, TooLarge):
            raise too_large(f"{group.key}.{suffix}", data.num_bytes, self._options.max_bytes)
        return data

    def _count(self, group: Group, kind: str | None, counts: Counts) -> None:
        beside = {suffix for _, suffix in self._beside(group, kind)}
        for suffix in group.members:
            if suffix == kind:
                counts.found += 1
                counts.images += 1
            elif suffix not in beside:
                counts.ignore(f".{suffix}")
            elif kind is None:
                counts.stray(f"{group.key}.{suffix}")
            else:
                counts.found += 1
                counts.notes += 1

    def _beside(self, group: Group, kind: str | None) -> Iterator[tuple[str, str]]:
        """(kind, suffix) of the members that say something of the image: .txt and the like, or .jpg.txt."""
        for note in note_kinds(self._options):
            yield from ((note, suffix) for suffix in (note, f"{kind}.{note}") if suffix in group.members)

    def _fields(self, group: Group, kind: str | None) -> Beside:
        beside = Beside({}, self._options)
        for note, suffix in self._beside(group, kind):
            beside.add(note, self._content(group, suffix), f"{group.key}.{suffix}")
        return beside

    def _notes(self, group: Group, kind: str | None) -> Notes:
        return self._fields(group, kind).notes()

    def _sample(self, tar: str, key: str, source: str, group: Group, kind: str | None) -> Sample:
        if kind is None:
            raise SampleSkipped("no_image", _no_image(group, self._options))
        notes = self._notes(group, kind)
        return Sample(
            key, self._content(group, kind), source, notes.caption, notes.label, notes.attributes, tar_stem(tar)
        )


def _no_image(group: Group, options: SourceOptions) -> str:
    found = ", ".join(group.members) or "nothing"
    images = [suffix for suffix in group.members if suffix.rpartition(".")[2] in IMAGE_KINDS]
    if len(images) > 1:
        return (
            f"{group.key} has the images {', '.join(images)}. Name one with `image_column`, or have each be a sample "
            "with `key_split` last"
        )
    what = f"no member {options.image_column}" if options.image_column else "no image member"
    return f"{group.key} has {what}; found {found}"


def _broken_off(tar: str, damage: str) -> SampleRef:
    def fail() -> Any:
        raise SampleSkipped(DAMAGED, damage)

    return SampleRef(f"{tar_stem(tar)}/__damaged__", tar, fail, fail, fail)
