"""Input tars and data files that lie elsewhere than a cache recorded, found again by name and folder.

Knows nothing of what they hold.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import takewhile
from pathlib import PurePosixPath

from ..errors import VerificationError
from ..records import Part
from ..sources import Source


class MovedFiles:
    """The files of a source that was named in place of the recorded one. They are recorded by their whole path, so
    they are found by their name; of several with that name it is the one whose folders agree furthest."""

    def __init__(self, source: Source) -> None:
        self._uri = source.uri
        self._places: dict[str, list[str]] = defaultdict(list)
        for entry in source.entries():
            self._places[PurePosixPath(entry.location).name].append(entry.location)

    def part(self, part: Part) -> Part:
        """The part with its entries where they are now. Raises VerificationError where one can't be told."""
        return Part(part.number, tuple(entry._replace(location=self._now(entry.location)) for entry in part.entries))

    def _now(self, recorded: str) -> str:
        name = PurePosixPath(recorded).name
        here = self._places.get(name, [])
        if not here:
            raise VerificationError(f"{self._uri} has no {name}, which the cache was made from.")
        agreeing = [_num_shared(recorded, place) for place in here]
        most = max(agreeing)
        if agreeing.count(most) > 1:
            raise VerificationError(
                f"{self._uri} has {len(here)} files called {name}, and their folders don't tell which of them was "
                f"{recorded}. Give a source whose folders are called as they were."
            )
        return here[agreeing.index(most)]


def _num_shared(one: str, other: str) -> int:
    """How many parts two paths share at their end."""
    pairs = zip(reversed(PurePosixPath(one).parts), reversed(PurePosixPath(other).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
