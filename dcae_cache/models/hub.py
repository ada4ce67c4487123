"""Find a model's files: by name in the zoo, as a hub repo, or as a local folder, in either published layout.

Answers with a Checkpoint: what the model is and where its weights lie. Downloads the configuration and the weights,
nothing else. The only file that knows the hub; it reads no tensors.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError, HubError, ModelError
from . import zoo
from .folder import PICKLE_REASON, PICKLES, Checkpoint, Files, Folder, InFolder, read_checkpoint
from .options import HubOptions

_REACH_SECONDS = 4.0  # for the hub's first answer
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_IN_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+/[\w./ -]+")  # a folder of a repo


def resolve(
    model: str | os.PathLike[str],
    hub: HubOptions | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
) -> Checkpoint:
    """Find ``model`` (a zoo name, ``owner/name`` or ``owner/name/sub/folder`` on the hub, or a folder) and fetch what
    loading it needs.

    ``hub`` and ``revision`` (a branch, tag or commit) concern the hub alone. ``variant`` is that of the weights' file:
    "fp16" for diffusion_pytorch_model.fp16.safetensors; None: the file without one, if there is such a file.
    Raises UnknownModelError, CheckpointError (the files aren't a usable DC-AE) or HubError (they can't be had).
    """
    name, hub = os.fspath(model), hub or HubOptions()
    entry = zoo.find(name)
    if entry is None or (Path(name).expanduser().is_dir() and "/" in name):
        place = open_files(name, hub, revision=revision)
        if isinstance(place, Folder):
            return read_checkpoint(place, place.folder.resolve().name, variant)
    elif entry.folder is not None:
        return replace(read_checkpoint(Folder(entry.folder), entry.name, variant), name=entry.name)
    repos = [name] if entry is None else _repos(entry, name)
    absent: HubError | None = None
    for repo_id in repos:
        repo, subfolder = _split(repo_id)
        files = _Repo(repo, revision, hub)
        try:
            found = read_checkpoint(_within(files, subfolder), repo_id if entry is None else entry.name, variant)
        except _AbsentError as error:
            absent = absent or error
            continue
        found = replace(found, repo_id=repo_id, revision=files.commit)
        return found if entry is None else _with_entry(found, entry)
    assert absent is not None, "every zoo model has a repo or a folder"
    raise HubError(str(absent)) from absent


def open_files(name: str, hub: HubOptions | None = None, *, revision: str | None = None) -> Files:
    """The files of any model, a DC-AE or not: those of a folder, or of the hub repo ``owner/name``.

    Fetches nothing yet. Raises UnknownModelError where ``name`` can be neither, CheckpointError for a path that isn't
    a folder.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Folder(folder)
    _refuse_non_repo(name, folder)
    repo, subfolder = _split(name)
    return _within(_Repo(repo, revision, hub or HubOptions()), subfolder)


def _split(name: str) -> tuple[str, str]:
    """ "owner/name/sub/folder" -> "owner/name", "sub/folder"."""
    owner, _, rest = name.partition("/")
    repo, _, subfolder = rest.partition("/")
    return f"{owner}/{repo}", subfolder.strip("/")


def _within(files: Files, subfolder: str) -> Files:
    return InFolder(files, subfolder) if subfolder else files


def _repos(entry: zoo.ModelEntry, name: str) -> list[str]:
    """The repos to try: the very one named, or all of the model's, the preferred first."""
    repos = [*entry.efficientvit_repos, *entry.diffusers_repos]
    return [repo for repo in repos if repo.lower() == name.lower()] or repos


def _with_entry(found: Checkpoint, entry: zoo.ModelEntry) -> Checkpoint:
    """The zoo's name and, where the files state none, its scaling factor; the architectures must agree."""
    if found.spec != entry.spec:
        raise CheckpointError(
            f"{found.repo_id} at {found.revision}: its config.json describes another architecture than "
            f"{entry.long_name}'s; pass another revision, or a local folder"
        )
    factor = entry.scaling_factor if found.scaling_factor is None else found.scaling_factor
    return replace(found, name=entry.name, scaling_factor=factor)


def _refuse_non_repo(name: str, path: Path) -> None:
    if path.is_file():
        reason = (
            PICKLE_REASON if path.suffix.lower() in PICKLES else "a model is a folder with config.json and weights"
        )
        raise CheckpointError(f"{name} is a file: {reason}; give the folder that holds config.json and *.safetensors")
    is_subfolder = _IN_REPO.fullmatch(name) is not None and not any(
        part in ("", ".", "..") for part in name.split("/")
    )
    if _REPO_ID.fullmatch(name) is None and (not is_subfolder or Path(path.parts[0]).exists()):
        if path.is_absolute() or name.startswith((".", "~")) or name.count(os.sep) > 1:
            raise CheckpointError(f"{name}: no such folder; expected config.json and *.safetensors in it")
        raise zoo.unknown_model(name)


class _AbsentError(HubError):
    """The repo as a whole isn't there (or not in the cache): another repo of the same model may be."""


class _Repo:
    """A model repo on the hub, at one commit: the first file fetched resolves the revision for all later ones."""

    def __init__(self, repo_id: str, revision: str | None, hub: HubOptions) -> None:
        self.repo_id, self.revision = repo_id, revision
        self.token, self.cache_dir, self.offline = hub.token, hub.cache_dir, hub.offline
        self.commit: str | None = None
        self.where = repo_id if revision is None else f"{repo_id} at {revision}"

    def fetch(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

        if self.commit is None and not self.offline:
            self._refuse_unreachable_hub(name)
        try:
            path = hf_hub_download(
                self.repo_id,
                name,
                revision=self.commit or self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.offline,
            )
        except LocalEntryNotFoundError as error:
            self.offline = self.offline or isinstance(error.__cause__, OfflineModeIsEnabled)  # by the environment
            if self.offline or self._known_absent(name):
                return None
            raise self._explain(error.__cause__ or error, name) from error
        except EntryNotFoundError:
            return None
        except Exception as error:
            raise self._explain(error, name) from error
        self.commit = Path(path).parts[-2 - name.count("/")]
        return Path(path)

    def _refuse_unreachable_hub(self, name: str) -> None:
        """Say at once that the hub can't be reached: its client tries for half a minute, unless it has a copy."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError

        if constants.HF_HUB_OFFLINE or try_to_load_from_cache(self.repo_id, name, self.cache_dir, self.revision):
            return
        try:
            address = hf_hub_url(self.repo_id, name, revision=self.revision)
            get_hf_file_metadata(address, token=self.token, timeout=_REACH_SECONDS)
        except HfHubHTTPError:  # it has answered: the client itself says what that means
            return
        except Exception as error:
            if not any(word in type(error).__name__ for word in ("Connect", "Timeout", "Network")):
                return
            raise self._explain(error, name) from error

    def _known_absent(self, name: str) -> bool:
        """Whether the cache remembers that the repo has no such file, from when the hub could be reached."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        revision = self.commit or self.revision
        return try_to_load_from_cache(self.repo_id, name, self.cache_dir, revision) is _CACHED_NO_EXIST

    def names(self) -> list[str]:
        if self.offline:
            return []
        from huggingface_hub import HfApi

        try:
            return list(HfApi().list_repo_files(self.repo_id, revision=self.commit or self.revision, token=self.token))
        except Exception as error:
            raise self._explain(error, "the list of files") from error

    def absence(self, what: str) -> ModelError:
        if self.offline:
            return self._not_cached(what)
        return CheckpointError(f"{self.where} on the hub has no {what}")

    def _not_cached(self, what: str) -> HubError:
        where = self.cache_dir or "the hub's default cache"
        return _AbsentError(
            f"{self.where}: {what} is not in {where}, and offline mode allows no download; "
            "run once with a network, or pass the cache_dir that holds it or a local folder"
        )

    def _explain(self, error: BaseException, name: str) -> HubError:
        """One sentence for an error of the hub client: what it means and what to do."""
        from huggingface_hub import errors as hub

        if isinstance(error, hub.GatedRepoError):
            return HubError(
                f"{self.repo_id} is gated: accept its terms at https://huggingface.co/{self.repo_id} "
                "and pass a token of that account (or run `hf auth login`)"
            )
        if isinstance(error, hub.RepositoryNotFoundError):
            return _AbsentError(
                f"{self.repo_id} is not on the hub, or it is private: check the spelling; "
                "for a private repo pass a token (or run `hf auth login`)"
            )
        if isinstance(error, hub.RevisionNotFoundError):
            return HubError(f"{self.repo_id} has no revision {self.revision!r}: pass a branch, tag or commit of it")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return HubError(
                f"{self.repo_id}: the hub refused {name} (HTTP {status}); is the token valid for this repo?"
            )
        if status is not None:
            return HubError(f"{self.repo_id}: the hub answered HTTP {status} for {name}; try again later")
        detail = (str(error).splitlines() or [""])[0]
        return HubError(
            f"{self.repo_id}: can't download {name} ({type(error).__name__}: {detail}); check the network and run "
            "the same command again (finished files are kept), or give a local folder"
        )
