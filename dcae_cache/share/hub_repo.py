"""One data set repo on the hub: which files it holds, files added and removed in commits, files fetched.

The second home of the hub's client. Whatever goes wrong becomes one line, in which no token and no signature stands.
Knows nothing of caches.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HubError, UsageError, one_line
from ..urls import without_secrets

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*", re.A)
_KIND = "dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file for the repo: its name there, where it lies here, and what it holds."""

    place: str
    path: Path
    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that the repo holds. ``sha256`` is known of large ones alone, ``blob_id`` (git's) of all."""

    num_bytes: int
    sha256: str | None
    blob_id: str

    def holds(self, upload: Upload) -> bool:
        """Whether it is, byte for byte, that file."""
        if self.sha256 is not None:
            return self.sha256 == upload.sha256
        return self.num_bytes == upload.num_bytes and self.blob_id == _git_hash(upload.path)


class AbsentFileError(HubError):
    """The repo is there, but not that file."""


class HubRepo:
    """A data set repo, at a branch (for reading also a tag or commit); ``token`` None: the one that is saved.

    Raises UsageError for a name that is no ``owner/name``; every method raises HubError where the hub refuses, lacks
    or can't deliver.
    """

    def __init__(self, repo_id: str, revision: str | None = None, token: str | None = None) -> None:
        if _REPO_ID.fullmatch(repo_id) is None:
            raise UsageError(f"A repo on the hub is called owner/name, not {repo_id!r}.")
        from huggingface_hub import HfApi

        self.repo_id, self.revision, self._token = repo_id, revision, token
        self._api = HfApi(token=token)
        self._where: dict[str, Any] = {"repo_id": repo_id, "repo_type": _KIND}

    @property
    def url(self) -> str:
        """What readers call it."""
        return f"hf://datasets/{self.repo_id}" + (f"@{self.revision}" if self.revision else "")

    def create(self, *, private: bool) -> None:
        """Have the repo, and the branch that is named; one that is there stays as visible as it is."""
        with self._explained("make it"):
            self._api.create_repo(**self._where, private=private or None, exist_ok=True)
            if self.revision is not None:
                self._api.create_branch(**self._where, branch=self.revision, exist_ok=True)

    def commit(self) -> str:
        """The commit that the revision stands for now."""
        with self._explained("its state"):
            found = self._api.repo_info(**self._where, revision=self.revision).sha
        assert found is not None, "the hub names the commit"
        return found

    def files(self) -> dict[str, RemoteFile]:
        """Every file of the repo, by its name there."""
        from huggingface_hub.hf_api import RepoFile

        with self._explained("the list of its files"):
            return {
                item.path: RemoteFile(item.size, item.lfs.sha256 if item.lfs else None, item.blob_id)
                for item in self._api.list_repo_tree(**self._where, recursive=True, revision=self.revision)
                if isinstance(item, RepoFile)
            }

    def change(self, message: str, add: Sequence[Upload], delete: Iterable[str] = ()) -> None:
        """Add and remove files in one commit. What the hub's storage holds already isn't sent again, committed or
        not."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[CommitOperationAdd | CommitOperationDelete]
        operations = [CommitOperationAdd(upload.place, str(upload.path)) for upload in add]
        operations += [CommitOperationDelete(place, is_folder=False) for place in delete]
        if not operations:
            return
        with self._explained("the upload"), _no_bars():
            self._api.create_commit(
                **self._where, operations=operations, commit_message=message, revision=self.revision
            )

    def fetch(self, place: str, folder: Path) -> bytes:
        """The content of one file, fetched into ``folder``."""
        with self._explained(place), _no_bars():
            return Path(
                self._api.hf_hub_download(**self._where, filename=place, revision=self.revision, local_dir=folder)
            ).read_bytes()

    def fetch_all(self, commit: str, patterns: Sequence[str], folder: Path) -> None:
        """Fetch all files of a commit whose names match into ``folder``; what is there already is only checked."""
        with self._explained("its files"):
            self._api.snapshot_download(
                **self._where, revision=commit, local_dir=folder, allow_patterns=list(patterns)
            )

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn an error of the hub's client into one sentence: what it means and what to do."""
        try:
            yield
        except Exception as error:  # also of its transport and storage libraries, which have their own
            from huggingface_hub.errors import EntryNotFoundError

            kind = AbsentFileError if isinstance(error, EntryNotFoundError) else HubError
            raise kind(self._explanation(error, what)) from error

    def _explanation(self, error: Exception, what: str) -> str:
        from huggingface_hub import errors as hub

        named = f"{self.repo_id} (a data set on the hub)"
        if isinstance(error, hub.GatedRepoError):
            return (
                f"{named} is gated: accept its terms at https://huggingface.co/datasets/{self.repo_id} and pass a "
                "`token` of that account (or run `hf auth login`)."
            )
        if isinstance(error, hub.RevisionNotFoundError):
            return f"{named} has no revision {self.revision!r}: pass a branch, tag or commit of it."
        if isinstance(error, hub.EntryNotFoundError):
            return f"{named} has no {what}. Check the name and the `revision`."
        if isinstance(error, hub.RepositoryNotFoundError):
            return (
                f"{named} is not there, or it is private: check the spelling; for a private one pass a `token` "
                "(or run `hf auth login`)."
            )
        status = _status(error)
        if status in (401, 403):
            return (
                f"{named}: the hub refused {what} (HTTP {status}). Pass a `token` that may write there "
                "(or run `hf auth login`)."
            )
        if status is not None:
            return f"{named}: the hub answered HTTP {status} for {what}. Run the same command again later."
        said = self._censored(one_line(_innermost(error)))
        return (
            f"{named}: {what} failed ({type(error).__name__}: {said}). Check the network and run the same command "
            "again: what has arrived is kept."
        )

    def _censored(self, text: str) -> str:
        """What a library said, without tokens and signed addresses."""
        from huggingface_hub import get_token

        for token in (self._token, get_token()):
            text = text.replace(token, "...") if token else text
        return without_secrets(text)


def _innermost(error: BaseException) -> BaseException:
    """The first cause: the client wraps what went wrong, sometimes twice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error, or what caused it, carries."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__
    return None


@contextmanager
def _no_bars() -> Iterator[None]:
    """The client's own progress bars stay away: files are counted by who calls."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    with warnings.catch_warnings():  # where the environment decides on bars, the client says that it does
        warnings.simplefilter("ignore")
        if shown:
            disable_progress_bars()
        try:
            yield
        finally:
            if shown:
                enable_progress_bars()


def _git_hash(path: Path) -> str:
    """The name that git gives to the content of a file."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
