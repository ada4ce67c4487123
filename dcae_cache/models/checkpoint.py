"""Find a model's files: by name in the zoo, as a hub repo, or as a local folder, in either published layout.

Answers with a Checkpoint: what the model is and where its weights lie. Downloads the configuration and the weights,
nothing else, and never a pickle. The only file that knows the hub; it reads no tensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..errors import CheckpointError, HubError, ModelError
from . import zoo
from .diffusers_config import CLASS_NAME, spec_from_diffusers_config
from .layouts import Layout
from .spec import DCAESpec
from .weights import shard_paths

_WEIGHTS: dict[Layout, str] = {
    "efficientvit": "model.safetensors",
    "diffusers": "diffusion_pytorch_model.safetensors",
}
_SUBFOLDERS = ("", "vae/")  # in a pipeline's repo the autoencoder lies in vae/
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_PICKLE_REASON = "a pickle can run any code when it is opened, so only safetensors is read"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model found: what it is, and where its weights lie.

    ``repo_id`` and ``revision`` (the resolved commit) are None for a local folder. ``scaling_factor`` is None where
    none is published. ``weights`` is a ``.safetensors`` file, or the ``.safetensors.index.json`` beside its shards.
    """

    name: str
    repo_id: str | None
    revision: str | None
    layout: Layout
    spec: DCAESpec
    scaling_factor: float | None
    weights: Path


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Find ``model`` (a zoo name, ``owner/name`` on the hub, or a folder) and fetch what loading it needs.

    ``revision``, ``token``, ``cache_dir`` and ``offline`` (use only what is in the cache) concern the hub.
    Raises UnknownModelError, CheckpointError (the files aren't a usable DC-AE) or HubError (they can't be had).
    """
    name = os.fspath(model)
    folder = Path(name).expanduser()
    entry = zoo.find(name)
    if folder.is_dir() and (entry is None or "/" in name):
        return _read(_Folder(folder), folder.resolve().name)
    if entry is not None and entry.folder is not None:
        return replace(_read(_Folder(entry.folder), entry.name), name=entry.name)
    if entry is None:
        _refuse_non_repo(name, folder)
    repos = [name] if entry is None else _repos(entry, name)
    absent: HubError | None = None
    for repo_id in repos:
        files = _Repo(repo_id, revision, token, cache_dir, offline)
        try:
            found = _read(files, repo_id if entry is None else entry.name)
        except _AbsentError as error:
            absent = absent or error
            continue
        found = replace(found, repo_id=repo_id, revision=files.commit)
        return found if entry is None else _with_entry(found, entry)
    assert absent is not None, "every zoo model has a repo or a folder"
    raise absent


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
            _PICKLE_REASON if path.suffix.lower() in _PICKLES else "a model is a folder with config.json and weights"
        )
        raise CheckpointError(f"{name} is a file: {reason}; give the folder that holds config.json and *.safetensors")
    if _REPO_ID.fullmatch(name) is None:
        if path.is_absolute() or name.startswith((".", "~")) or name.count(os.sep) > 1:
            raise CheckpointError(f"{name}: no such folder; expected config.json and *.safetensors in it")
        raise zoo.unknown_model(name)


class _Files(Protocol):
    """A place that may hold a checkpoint; names use forward slashes."""

    where: str

    def fetch(self, name: str) -> Path | None:
        """The file on disk, or None when the place doesn't have it."""

    def names(self) -> list[str]:
        """What the place holds, for error messages; empty when that can't be found out."""

    def absence(self, what: str) -> ModelError:
        """The error for a file ``fetch`` didn't find."""


class _Folder:
    """A local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    def fetch(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.is_file() else None

    def names(self) -> list[str]:
        folders = (self.folder, self.folder / "vae")
        paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)

    def absence(self, what: str) -> ModelError:
        return CheckpointError(f"{self.where} has no {what}")


class _AbsentError(HubError):
    """The repo as a whole isn't there (or not in the cache): another repo of the same model may be."""


class _Repo:
    """A model repo on the hub, at one commit: the first file fetched resolves the revision for all later ones."""

    def __init__(
        self,
        repo_id: str,
        revision: str | None,
        token: str | None,
        cache_dir: str | os.PathLike[str] | None,
        offline: bool,
    ) -> None:
        self.repo_id, self.revision, self.token = repo_id, revision, token
        self.cache_dir = None if cache_dir is None else os.fspath(cache_dir)
        self.offline = offline
        self.commit: str | None = None
        self.where = repo_id if revision is None else f"{repo_id} at {revision}"

    def fetch(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

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
            if self.offline:
                return None
            raise self._explain(error.__cause__ or error, name) from error
        except EntryNotFoundError:
            return None
        except Exception as error:
            raise self._explain(error, name) from error
        self.commit = Path(path).parts[-2 - name.count("/")]
        return Path(path)

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

        if isinstance(error, hub.OfflineModeIsEnabled):
            return self._not_cached(name)
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


def _read(files: _Files, fallback_name: str) -> Checkpoint:
    """The checkpoint in ``files``, at the top or in ``vae/``."""
    refused: CheckpointError | None = None
    for subfolder in _SUBFOLDERS:
        path = files.fetch(f"{subfolder}config.json")
        if path is None:
            continue
        try:
            layout, name, spec, factor = _identify(path)
        except CheckpointError as error:
            refused = refused or CheckpointError(f"{files.where}: {subfolder}config.json: {error}")
            continue
        weights = _fetch_weights(files, layout, subfolder)
        return Checkpoint(name or fallback_name, None, None, layout, spec, factor, weights)
    if refused is not None:
        raise refused
    raise _without_config(files)


def _identify(path: Path) -> tuple[Layout, str | None, DCAESpec, float | None]:
    """Layout, name if stated, spec and scaling factor out of a config.json."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"is not JSON ({error}); download it again") from error
    if not isinstance(config, Mapping):
        raise CheckpointError(f"holds a {type(config).__name__}, expected an object; download it again")
    if "_class_name" in config:
        spec, factor = spec_from_diffusers_config(config)
        return "diffusers", None, spec, factor
    if "model_name" not in config:
        raise CheckpointError(
            f"names neither a model_name (efficientvit) nor the _class_name {CLASS_NAME} (diffusers)"
        )
    entry = zoo.find(str(config["model_name"]))
    if entry is None or entry.spec is None:
        raise CheckpointError(f"its model_name is unknown: {zoo.unknown_model(str(config['model_name']))}")
    return "efficientvit", entry.name, entry.spec, entry.scaling_factor


def _fetch_weights(files: _Files, layout: Layout, subfolder: str) -> Path:
    name = subfolder + _WEIGHTS[layout]
    path = files.fetch(name)
    if path is not None:
        return path
    index = files.fetch(f"{name}.index.json")
    if index is None:
        raise _without_weights(files, name)
    for shard in shard_paths(index):
        if files.fetch(subfolder + shard.name) is None:
            raise files.absence(f"{subfolder}{shard.name}, which {name}.index.json names; download it again")
    return index


def _without_weights(files: _Files, name: str) -> ModelError:
    present = files.names()
    pickles = [other for other in present if other.lower().endswith(_PICKLES)]
    if pickles:
        return CheckpointError(
            f"{files.where} holds {', '.join(pickles[:3])} but no {name}: {_PICKLE_REASON}; convert it to safetensors"
        )
    found = f" (found: {', '.join(present[:8])})" if present else ""
    return files.absence(f"{name}{found}")


def _without_config(files: _Files) -> ModelError:
    present = files.names()
    pickles = [other for other in present if other.lower().endswith(_PICKLES)]
    reason = f", only {', '.join(pickles[:3])}: {_PICKLE_REASON}" if pickles else ""
    return files.absence(f"config.json, at its top or in vae/{reason}")
