"""A cache to a data set repo on the hub: parts first, some at a time, the index last.

So a repo with an index holds all its parts, and a push that was killed goes on where it broke off: what the repo holds
already, by its hash, is not sent again. Knows nothing of how the hub is spoken to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache.index import INDEX_NAME, load_index
from ..cache.parts import PARTS_FOLDER, shard_path
from ..cache.plan import PLAN_NAME
from ..errors import CacheError, one_line
from ..files import sha256_of_file
from ..models.options import HubOptions
from ..text import counted
from .card import CARD_NAME, PICTURE_NAME, CardFacts, is_unedited, make_card
from .hub_repo import HubRepo, RemoteFile, Upload
from .pictures import draw_samples
from .public_copy import SKIPPED_NAME, PublicCopy, unreadable

_PARTS_AT_ONCE = 64  # in a commit: hubs want many small ones


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """How to push. ``anonymous``: leave out the folders of this machine (docs/sharing.md); ``pictures``: decode a few
    samples for the card; ``license``: of the images, as the hub names it; ``model``: where it is now, if it moved."""

    private: bool = False
    revision: str | None = None  # a branch
    anonymous: bool = True
    pictures: bool = True
    license: str | None = None
    model: str | None = None
    device: str = "auto"
    hub: HubOptions = field(default_factory=HubOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push did: ``url`` is what readers call the repo; bytes and files of the cache, and those sent now."""

    url: str
    num_files: int
    num_bytes: int
    sent_files: int
    sent_bytes: int


def push_cache(
    cache: str | Path,
    repo_id: str,
    options: PushOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notify: Callable[[str], None] = lambda text: None,
) -> Pushed:
    """Make ``repo_id`` (owner/name, a data set) hold the cache in folder ``cache``, its card, and no other parts.

    Run it again to go on with one that broke off, or after the cache has grown. ``progress`` hears (parts there, parts
    in all), ``notify`` what a person should hear. Every file is checked against its hash before it is sent.

    Raises UsageError for a name that is none, CacheError for a cache that isn't complete or is damaged, HubError where
    the hub refuses or can't be reached. What was sent before is kept.
    """
    options = options or PushOptions()
    cache = Path(cache)
    index = load_index(cache)
    if not index["complete"]:
        raise CacheError(f"{cache} isn't complete. Run the same encode command again first: it adds what is missing.")
    repo = HubRepo(repo_id, options.revision, options.hub.token)
    repo.create(private=options.private)
    with tempfile.TemporaryDirectory(prefix="dcae-cache-push-") as scratch:
        push = _Push(cache, index, repo, options, Path(scratch))
        push.send_parts(progress)
        push.send_the_rest(notify)
    return push.outcome()


class _Push:
    """One push under way. ``scratch``: a folder for what is made for it."""

    def __init__(
        self, cache: Path, index: Mapping[str, Any], repo: HubRepo, options: PushOptions, scratch: Path
    ) -> None:
        self._cache, self._index, self._repo, self._options, self._scratch = cache, index, repo, options, scratch
        self._copy = PublicCopy(cache, index, scratch, options.anonymous)
        self._there: dict[str, RemoteFile] = repo.files()
        self._table_sha256: dict[str, str] = {}
        self._all: list[Upload] = []
        self._sent: list[Upload] = []

    def send_parts(self, progress: Callable[[int, int], None]) -> None:
        """Add those parts that the repo doesn't hold, commit by commit."""
        parts: Sequence[Mapping[str, Any]] = self._index["parts"]
        for first in range(0, len(parts), _PARTS_AT_ONCE):
            entries = parts[first : first + _PARTS_AT_ONCE]
            uploads = [upload for entry in entries for upload in self._part(entry)]
            message = f"Add {entries[0]['name']} to {entries[-1]['name']}"
            self._send(message, uploads)
            for made in (self._scratch / PARTS_FOLDER).glob("*"):
                made.unlink()
            progress(first + len(entries), len(parts))

    def send_the_rest(self, notify: Callable[[str], None]) -> None:
        """Add plan, list of skipped samples, card and, in the same commit, the index; drop parts of earlier pushes."""
        said, index = self._copy.index_over(self._table_sha256)
        uploads = [
            self._upload(PLAN_NAME, self._copy.plan()),
            self._upload(SKIPPED_NAME, self._copy.skipped()),
            self._upload(INDEX_NAME, index),
            *self._card(said, notify),
        ]
        ours = {upload.place for upload in self._all}
        stale = [place for place in self._there if _is_of_a_part(place) and place not in ours]
        self._send(f"Add the index of {counted(len(self._index['parts']), 'part')}", uploads, stale)

    def outcome(self) -> Pushed:
        """What came of it."""
        return Pushed(
            url=self._repo.url,
            num_files=len(self._all),
            num_bytes=sum(upload.num_bytes for upload in self._all),
            sent_files=len(self._sent),
            sent_bytes=sum(upload.num_bytes for upload in self._sent),
        )

    def _part(self, entry: Mapping[str, Any]) -> Iterator[Upload]:
        """The two files of a part. The shard comes first, as everywhere."""
        name = entry["name"]
        yield Upload(
            place=f"{PARTS_FOLDER}/{name}.safetensors",
            path=shard_path(self._cache, name),
            sha256=entry["sha256"],
            num_bytes=entry["num_bytes"],
        )
        table = self._upload(f"{PARTS_FOLDER}/{name}.parquet", self._copy.table(entry))
        self._table_sha256[name] = table.sha256
        yield table

    def _card(self, index: Mapping[str, Any], notify: Callable[[str], None]) -> list[Upload]:
        """The card and its picture; a card that its owner has edited stays as it is. ``index``: the one sent."""
        if CARD_NAME in self._there and not is_unedited(self._fetched(CARD_NAME)):
            notify(f"{self._repo.repo_id} has a {CARD_NAME} of its own, which stays as it is.")
            return []
        picture, options = self._scratch / PICTURE_NAME, self._options
        reason: str | None = "whoever uploaded it left them out"
        if options.pictures:
            reason = draw_samples(self._cache, picture, options.hub, options.model, options.device)
            if reason is not None:
                notify(f"The card shows no samples: {reason}.")
        facts = CardFacts(
            repo_id=self._repo.repo_id, url=self._repo.url, license=options.license, why_no_picture=reason
        )
        card = self._scratch / CARD_NAME
        card.write_text(make_card(index, facts), encoding="utf-8")
        made = [self._upload(CARD_NAME, card)]
        return made if reason is not None else [*made, self._upload(PICTURE_NAME, picture)]

    def _fetched(self, place: str) -> str:
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            return self._repo.fetch(place, Path(folder)).decode("utf-8", "replace")

    def _upload(self, place: str, path: Path) -> Upload:
        try:
            return Upload(place=place, path=path, sha256=sha256_of_file(path), num_bytes=path.stat().st_size)
        except OSError as error:
            raise CacheError(unreadable(path, one_line(error), self._cache)) from error

    def _send(self, message: str, uploads: Sequence[Upload], delete: Sequence[str] = ()) -> None:
        """Add, in one commit, those files that the repo doesn't hold as they are."""
        self._all += uploads
        missing = [upload for upload in uploads if not self._is_there(upload)]
        for upload in missing:
            self._refuse_damage(upload)
        if missing or delete:
            self._repo.change(message, missing, delete)
        self._sent += missing

    def _is_there(self, upload: Upload) -> bool:
        there = self._there.get(upload.place)
        return there is not None and there.holds(upload)

    def _refuse_damage(self, upload: Upload) -> None:
        try:
            found = sha256_of_file(upload.path)
        except OSError as error:
            raise CacheError(unreadable(upload.path, one_line(error), self._cache)) from error
        if found != upload.sha256:
            raise CacheError(
                f"{upload.path} is damaged: its sha256 is {found}, expected {upload.sha256}. It was not sent. Run: "
                f"dcae-cache verify {self._cache}"
            )


def _is_of_a_part(place: str) -> bool:
    return place.startswith(f"{PARTS_FOLDER}/part-")
