"""A checkpoint as files: recognise it in a folder, or in anything that hands out files like one.

Says which layout and which model it is and where its weights lie; refuses pickles. Opens no tensors, knows no hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..errors import CheckpointError, ModelError, UsageError
from ..text import parse_json
from . import zoo
from .diffusers_config import CLASS_NAME, spec_from_diffusers_config
from .layouts import Layout
from .spec import DCAESpec
from .weights import shard_paths

T = TypeVar("T")

_WEIGHTS: dict[Layout, str] = {
    "efficientvit": "model.safetensors",
    "diffusers": "diffusion_pytorch_model.safetensors",
}
VARIANTS = ("fp32", "bf16", "fp16")  # the finest first
_VARIANT = re.compile(r"[A-Za-z0-9_-]{1,40}")
SUBFOLDERS = ("", "vae/")  # in a pipeline's repo the autoencoder lies in vae/
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
PICKLE_REASON = "a pickle can run any code when it is opened, so only safetensors is read"


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


class Files(Protocol):
    """A place that may hold a checkpoint; names use forward slashes."""

    where: str

    def fetch(self, name: str) -> Path | None:
        """The file on disk, or None when the place doesn't have it."""

    def names(self) -> list[str]:
        """What the place holds, for error messages; empty when that can't be found out."""

    def absence(self, what: str) -> ModelError:
        """The error for a file ``fetch`` didn't find."""


class Folder:
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


class InFolder:
    """A folder of a place, as a place of its own: of a repo that holds several pipelines, say."""

    def __init__(self, files: Files, folder: str) -> None:
        self._files, self._folder = files, f"{folder.strip('/')}/"
        self.where = f"{files.where}/{folder.strip('/')}"

    def fetch(self, name: str) -> Path | None:
        return self._files.fetch(self._folder + name)

    def names(self) -> list[str]:
        inside = (name for name in self._files.names() if name.startswith(self._folder))
        return [name.removeprefix(self._folder) for name in inside]

    def absence(self, what: str) -> ModelError:
        return self._files.absence(f"{self._folder}{what}")


def read_checkpoint(files: Files, fallback_name: str, variant: str | None = None) -> Checkpoint:
    """The checkpoint in ``files``, at the top or in ``vae/``; ``variant`` as for ``fetch_weights``."""
    subfolder, (layout, name, spec, factor) = first_config(files, _identify)
    weights = fetch_weights(files, layout, subfolder, variant)
    return Checkpoint(name or fallback_name, None, None, layout, spec, factor, weights)


def first_config(files: Files, identify: Callable[[Mapping[str, Any]], T]) -> tuple[str, T]:
    """The first of SUBFOLDERS whose config.json ``identify`` takes, and what it makes of it.

    ``identify`` raises CheckpointError, worded to follow "config.json: ", for one that it refuses; the first of these
    is raised where none is taken, and what ``without_config`` says where there is none.
    """
    refused: CheckpointError | None = None
    for subfolder in SUBFOLDERS:
        path = files.fetch(f"{subfolder}config.json")
        if path is None:
            continue
        try:
            return subfolder, identify(_read_config(path))
        except CheckpointError as error:
            refused = refused or CheckpointError(f"{files.where}: {subfolder}config.json: {error}")
    raise refused or without_config(files)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"is not JSON ({error}); download it again") from error
    if not isinstance(config, Mapping):
        raise CheckpointError(f"holds a {type(config).__name__}, expected an object; download it again")
    return config


def _identify(config: Mapping[str, Any]) -> tuple[Layout, str | None, DCAESpec, float | None]:
    """Layout, name if stated, spec and scaling factor out of a config.json."""
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


def fetch_weights(files: Files, layout: Layout, subfolder: str, variant: str | None = None) -> Path:
    """The weights beside a config.json of that layout; their index where they come in shards, which are fetched too.

    ``variant``: the one to take; None: those without one, else the finest. Raises ModelError where there are none, or
    none but pickles, UsageError for a variant that no file could have.
    """
    if variant is not None and not is_variant(variant):
        raise UsageError(f"`variant` is {variant!r}; expected the middle of a file's name, such as fp16.")
    plain = subfolder + _WEIGHTS[layout]
    found = _fetch_variant(files, plain, variant)
    if found is None and variant is None:  # diffusers' names for weights that were saved in another dtype
        found = next((path for each in VARIANTS if (path := _fetch_variant(files, plain, each)) is not None), None)
    if found is None:
        raise _without_weights(files, _name_of(plain, variant))
    return found


def is_variant(value: object) -> bool:
    """Whether a value can be the middle of a file's name, and nothing worse."""
    return isinstance(value, str) and _VARIANT.fullmatch(value) is not None


def _name_of(plain: str, variant: str | None) -> str:
    return plain if variant is None else f"{plain.removesuffix('.safetensors')}.{variant}.safetensors"


def _fetch_variant(files: Files, plain: str, variant: str | None) -> Path | None:
    """The weights of one variant, whole or as the index of their shards."""
    path = files.fetch(_name_of(plain, variant))
    if path is not None:
        return path
    index_name = f"{plain}.index.json" if variant is None else f"{plain}.index.{variant}.json"
    index = files.fetch(index_name)
    if index is None:
        return None
    folder = plain[: plain.rfind("/") + 1]
    for shard in shard_paths(index):
        name = folder + shard.name
        if files.fetch(name) is None:
            raise files.absence(f"{name}, which {index_name} names; download it again")
    return index


def _without_weights(files: Files, name: str) -> ModelError:
    present = files.names()
    pickles = [other for other in present if other.lower().endswith(PICKLES)]
    if pickles:
        return CheckpointError(
            f"{files.where} holds {', '.join(pickles[:3])} but no {name}: {PICKLE_REASON}; convert it to safetensors"
        )
    found = f" (found: {', '.join(present[:8])})" if present else ""
    return files.absence(f"{name}{found}")


def without_config(files: Files) -> ModelError:
    """The error for a place that has no config.json in any of SUBFOLDERS."""
    present = files.names()
    pickles = [other for other in present if other.lower().endswith(PICKLES)]
    reason = f", only {', '.join(pickles[:3])}: {PICKLE_REASON}" if pickles else ""
    return files.absence(f"config.json, at its top or in vae/{reason}")
