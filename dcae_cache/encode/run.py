"""What is fixed for every step of one run, and how that is set up: source, model, recipe, folder.

Setting up refuses whatever can't work before anything is written or any image is opened. Knows nothing of batches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..cache.known import remember
from ..cache.parts import PARTS_FOLDER
from ..cache.plan import PLAN_NAME, load_plan
from ..cache.recipe import fingerprint, recipe_changes, recipe_of
from ..config import EncodeConfig, RunOptions
from ..errors import ModelError, RecipeMismatchError, UsageError
from ..images.views import Fitting
from ..models.latent_encoder import LatentEncoder
from ..records import Bucket, Origin
from ..sources import ListedSource, SourceOptions, open_source, refuse_options_without_effect
from ..urls import without_secrets
from .run_model import RunModel, find_model, identify


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is decided before a run writes anything, and doesn't change while it lasts."""

    source: ListedSource
    origin: Origin  # the source and how it is read, as the plan records it
    cache: Path  # the folder it is written in
    away: str | None = None  # the URL of the object store that it is sent to, part by part
    config: EncodeConfig
    options: RunOptions
    model: RunModel
    recipe: dict[str, Any]
    replaces: bool = False  # a cache of another recipe, to be deleted first

    @property
    def name(self) -> str:
        """What the cache is called in messages."""
        return str(self.cache) if self.away is None else without_secrets(self.away)

    @property
    def fingerprint(self) -> str:
        """The recipe's fingerprint."""
        return fingerprint(self.recipe)

    @property
    def fitting(self) -> Fitting:
        """How images are fitted to buckets."""
        return self.config.fitting(self.recipe["spatial_compression_ratio"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asked for, as every process of a run must know it."""

    source: str
    out: Path  # the folder that is written to
    away: str | None = None  # the URL that `out` named, if it isn't that folder
    config: EncodeConfig
    options: RunOptions
    source_options: SourceOptions

    @property
    def name(self) -> str:
        """What the cache is called in messages."""
        return str(self.out) if self.away is None else without_secrets(self.away)

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"out": str(self.out)})

    @staticmethod
    def from_json(text: str) -> Request:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        return Request(
            source=values["source"],
            out=Path(values["out"]),
            away=values["away"],
            config=EncodeConfig(**values["config"]),
            options=RunOptions(**values["options"]),
            source_options=SourceOptions(**values["source_options"]),
        )


def start_run(request: Request, device: torch.device) -> Run:
    """Find source and model and refuse what can't work, before anything is written."""
    _refuse_remote_folder(request.out)
    source = open_source(request.source, request.source_options)
    refuse_options_without_effect(source, request.source_options)
    _refuse_foreign_folder(request.out, source)
    model = find_model(request.config, request.options, device)
    request.config.fitting(model.checkpoint.spec.spatial_compression_ratio)
    known = load_plan(request.out)
    recipe = recipe_of(request.config, identify(model, request.config, known.recipe if known else {}))
    run = _run_of(request, source, model, recipe)
    try:
        if known is not None:
            _refuse_other_recipe(request.name, known.recipe, recipe)
            _refuse_other_images(request.name, known.origin, run.origin)
    except RecipeMismatchError:
        if not request.options.overwrite:
            raise
        run = replace(run, replaces=True)
    remember(source.uri, request.config.model_source, *([recipe["repo_id"]] if recipe["repo_id"] else []))
    return run


def join_run(request: Request, device: torch.device, recipe: Mapping[str, Any], found: Mapping[str, Any]) -> Run:
    """The run as a process sees it that doesn't lead it: the recipe is the leader's, the source isn't listed again.

    Raises ModelError where this process has another model than the leader.
    """
    source = open_source(request.source, request.source_options)
    source.adopt(found)
    model = find_model(request.config, request.options, device)
    sha256 = model.load().encoder_sha256
    if sha256 != recipe["weights_sha256"]:
        raise ModelError(
            f"The encoder's weights have sha256 {sha256} here, {recipe['weights_sha256']} where the run is led from. "
            "Give every machine the same model."
        )
    return _run_of(request, source, model, dict(recipe))


def open_encoder(run: Run, streams: int) -> LatentEncoder:
    """The run's encoder, with its model on the device. On a CPU it encodes ``streams`` batches at once."""
    config, scaling_factor = run.config, run.recipe["scaling_factor"]
    return LatentEncoder(run.model.load(), config.dtype, scaling_factor, config.flip, streams, fixed_batches(run))


def fixed_batches(run: Run) -> Callable[[Bucket], int] | None:
    """As many images per batch as the user asked for, whatever their size; None: as suits the device."""
    count = run.options.batch_size
    return None if count is None else lambda bucket: count


def _run_of(request: Request, source: ListedSource, model: RunModel, recipe: dict[str, Any]) -> Run:
    return Run(
        source=source,
        origin=Origin(source.uri, request.source_options.to_json()),
        cache=request.out,
        away=request.away,
        config=request.config,
        options=request.options,
        model=model,
        recipe=recipe,
    )


def _refuse_other_recipe(out: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changes = recipe_changes(old, new)
    if not changes:
        return
    cure = "Use the old settings,"
    if old.get("image_rules_version") != new["image_rules_version"]:
        cure = "It can be read and verified as ever; to add to it, use the release that began it. Or choose"
    raise RecipeMismatchError(
        f"{out} was made with another recipe: {'; '.join(changes)}. Nothing was changed. {cure} another `out`, or "
        "`overwrite`, which deletes these latents first."
    )


def _refuse_other_images(out: str, old: Origin, new: Origin) -> None:
    names = ("split", "image_column", "key", "key_split", "table", "chosen", "merged")
    changes = [
        f"{n}: {old.options.get(n)} -> {new.options.get(n)}" for n in names if old.options.get(n) != new.options.get(n)
    ]
    if changes:
        raise RecipeMismatchError(
            f"{out} was made from other images: {'; '.join(changes)}. Nothing was changed. Use the old options, "
            "another `out`, or `overwrite`, which deletes these latents first."
        )


def _refuse_remote_folder(out: Path) -> None:
    """A URL would pass for a local folder of an odd name."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(out)):
        raise UsageError(
            f"`out` {out} names a remote place, and caches are made on local disks. Nothing was written; give a local "
            "folder and copy it when it is complete."
        )


def _refuse_foreign_folder(cache: Path, source: ListedSource) -> None:
    if cache.exists() and not cache.is_dir():
        raise UsageError(f"`out` {cache} is a file; expected a folder that doesn't exist yet, or a cache.")
    if cache.is_dir() and not (cache / PLAN_NAME).exists():
        strangers = [
            entry.name for entry in cache.iterdir() if not entry.name.startswith(".") and entry.name != PARTS_FOLDER
        ]
        if strangers:
            raise UsageError(
                f"`out` {cache} holds other files ({', '.join(sorted(strangers)[:3])}) and is no cache. "
                "Nothing was written; choose an empty or new folder."
            )
    if cache.exists() and Path(source.uri).exists() and cache.samefile(source.uri):
        raise UsageError(f"`out` {cache} is the source itself. Nothing was written; choose another folder.")
