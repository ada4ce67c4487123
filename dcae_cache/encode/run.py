"""What every step of one encoding run shares, and how it is set up: source, model, recipe, folder.

Setting up refuses whatever can't work before anything is written or any image is opened. Knows nothing of batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..cache.parts import PARTS_FOLDER, PartInfo
from ..cache.plan import PLAN_NAME, Plan, load_plan
from ..cache.recipe import fingerprint, recipe_changes, recipe_of
from ..config import EncodeConfig, RunOptions
from ..errors import ModelError, RecipeMismatchError, UsageError
from ..images.buckets import BucketRule
from ..records import Origin
from ..sources import Source, SourceOptions, open_source
from .progress import Progress, Tally
from .run_model import Model, find_model, identify


@dataclass(slots=True)
class Run:
    """What all steps of one run share."""

    source: Source
    origin: Origin
    cache: Path
    config: EncodeConfig
    options: RunOptions
    model: Model
    recipe: dict[str, Any]
    report: Callable[[Progress], None] = lambda progress: None
    notify: Callable[[str], None] = lambda text: None
    num_processes: int = 1
    streams: int = 1  # batches encoded at once on a CPU
    replaces: bool = False  # a cache of another recipe, to be deleted first
    tally: Tally = field(default_factory=Tally)  # of this process
    others: Tally = field(default_factory=Tally)  # of the other processes of this run
    device: str | None = None
    total: int | None = None  # samples planned
    _parts: int = 0  # parts planned
    _before: Tally = field(default_factory=Tally)  # what earlier runs committed

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.recipe)

    @property
    def rule(self) -> BucketRule:
        return self.config.bucket_rule(self.recipe["spatial_compression_ratio"])

    def count(self, encoded: int, skipped: int) -> None:
        """Note that so many more samples are dealt with, and report it."""
        self.tally.encoded += encoded
        self.tally.skipped += skipped
        self.show_progress()

    def resume(self, plan: Plan, parts: Sequence[PartInfo]) -> None:
        """Note how much there is in all, and what earlier runs committed."""
        self._parts = plan.num_parts
        skipped = sum(part.num_skipped for part in parts)
        self._before = Tally(sum(part.num_samples for part in parts), 0, skipped, len(parts))
        if self.source.entries_per_part is None:
            self.total = plan.num_entries
        self.show_progress()

    def count_part(self) -> None:
        """Note that one more part is dealt with."""
        self.tally.parts += 1
        self.show_progress()

    def show_progress(self) -> None:
        """Report how far the run is, earlier runs and other processes included."""
        tallies = (self._before, self.tally, self.others)
        skipped = sum(tally.skipped for tally in tallies)
        done = skipped + sum(tally.encoded for tally in tallies)
        parts = sum(tally.parts for tally in tallies)
        if self.source.entries_per_part is not None and parts:
            self.total = done * self._parts // parts
        self.report(Progress(self.total, done, skipped))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asked for, as every process of a run must know it."""

    source: str
    out: Path
    config: EncodeConfig
    options: RunOptions
    source_options: SourceOptions

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"out": str(self.out)})

    @staticmethod
    def from_json(text: str) -> Request:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        return Request(
            source=values["source"],
            out=Path(values["out"]),
            config=EncodeConfig(**values["config"]),
            options=RunOptions(**values["options"]),
            source_options=SourceOptions(**values["source_options"]),
        )


def start_run(request: Request, device: torch.device) -> Run:
    """Find source and model and refuse what can't work, before anything is written."""
    out, config, options = request.out, request.config, request.options
    origin = open_source(request.source, request.source_options)
    _refuse_foreign_folder(out, origin)
    model = find_model(config, options, device)
    config.bucket_rule(model.checkpoint.spec.spatial_compression_ratio)
    known = load_plan(out)
    recipe = recipe_of(config, identify(model, config, known.recipe if known else {}))
    reading = Origin(origin.uri, request.source_options.to_json())
    run = Run(origin, reading, out, config, options, model, recipe)
    try:
        if known is not None:
            _refuse_other_recipe(out, known.recipe, recipe)
            _refuse_other_reading(out, known.origin, reading)
    except RecipeMismatchError:
        if not options.overwrite:
            raise
        run.replaces = True
    return run


def join_run(request: Request, device: torch.device, recipe: Mapping[str, Any], found: Mapping[str, Any]) -> Run:
    """The run as a process sees it that doesn't lead it: the recipe is the leader's, the source isn't listed again.

    Raises ModelError where this process has another model than the leader.
    """
    origin = open_source(request.source, request.source_options)
    origin.adopt(found)
    model = find_model(request.config, request.options, device)
    sha256 = model.load().encoder_sha256
    if sha256 != recipe["weights_sha256"]:
        raise ModelError(
            f"The encoder's weights have sha256 {sha256} here, {recipe['weights_sha256']} where the run is led from. "
            "Give every machine the same model."
        )
    reading = Origin(origin.uri, request.source_options.to_json())
    return Run(origin, reading, request.out, request.config, request.options, model, dict(recipe))


def _refuse_other_recipe(out: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changes = recipe_changes(old, new)
    if changes:
        raise RecipeMismatchError(
            f"{out} was made with another recipe: {'; '.join(changes)}. Nothing was changed. Use the old settings, "
            "another --out, or --overwrite, which deletes these latents first."
        )


def _refuse_other_reading(out: Path, old: Origin, new: Origin) -> None:
    names = ("split", "image_column")
    changes = [
        f"{n}: {old.options.get(n)} -> {new.options.get(n)}" for n in names if old.options.get(n) != new.options.get(n)
    ]
    if changes:
        raise RecipeMismatchError(
            f"{out} was made from other images: {'; '.join(changes)}. Nothing was changed. Use the old options, "
            "another --out, or --overwrite, which deletes these latents first."
        )


def _refuse_foreign_folder(cache: Path, source: Source) -> None:
    if cache.exists() and not cache.is_dir():
        raise UsageError(f"--out {cache} is a file; expected a folder that doesn't exist yet, or a cache.")
    if cache.is_dir() and not (cache / PLAN_NAME).exists():
        strangers = [
            entry.name for entry in cache.iterdir() if not entry.name.startswith(".") and entry.name != PARTS_FOLDER
        ]
        if strangers:
            raise UsageError(
                f"--out {cache} holds other files ({', '.join(sorted(strangers)[:3])}) and is no cache. "
                "Nothing was written; choose an empty or new folder."
            )
    if cache.exists() and Path(source.uri).exists() and cache.samefile(source.uri):
        raise UsageError(f"--out {cache} is the source itself. Nothing was written; choose another folder.")
