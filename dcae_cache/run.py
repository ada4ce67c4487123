"""What every step of one encoding run shares, and how it is set up: source, model, recipe, folder.

Setting up refuses whatever can't work before anything is written or any image is opened. Knows nothing of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .buckets import BucketRule
from .config import DtypeName, EncodeConfig, ModelIdentity, RunOptions, fingerprint, recipe_changes, recipe_of
from .encoder import pick_device
from .errors import ModelError, RecipeMismatchError, SourceError, UsageError
from .index import INDEX_NAME
from .models.autoencoder import DCAE
from .models.checkpoint import resolve
from .models.folder import Checkpoint
from .models.weights import digest_of_half
from .plan import PLAN_NAME, Plan, load_plan
from .records import Origin
from .shards import PARTS_FOLDER, TORCH_DTYPES, PartInfo
from .sources import Source, SourceOptions, open_source


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, in samples: ``done`` counts stored and skipped ones, those of earlier runs included.

    Where parts hold unknown numbers of samples ``total`` is an estimate from those done, and None before the first.
    """

    total: int | None
    done: int
    skipped: int


class Model:
    """The autoencoder of a run, found at once but read only when it is needed: a finished cache never needs it."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: DtypeName) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self._dtype = TORCH_DTYPES[dtype]
        self._autoencoder: DCAE | None = None

    def load(self) -> DCAE:
        """The encoder, on the device and in the compute dtype; read on the first call."""
        if self._autoencoder is None:
            self._autoencoder = DCAE(self.checkpoint, self.device, self._dtype, with_decoder=False)
        return self._autoencoder

    def encoder_sha256(self) -> str:
        """Digest of the encoder's weights, read from the files: no network is built for it."""
        found = self.checkpoint
        return digest_of_half(found.weights, found.spec, found.layout, "encoder")


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
    report: Callable[[Progress], None]
    total: int | None = None  # samples planned
    _parts: int = 0  # parts planned
    _parts_done: int = 0
    _done: int = 0  # of those, stored or skipped, by earlier runs too
    encoded: int = 0
    notify: Callable[[str], None] = lambda text: None
    retry_skipped: bool = False
    broken: frozenset[str] = frozenset()  # parts that aren't what they were written as
    replaces: bool = False  # a cache of another recipe, to be deleted first
    copied: int = 0  # latents that were stored already
    skipped: int = 0  # by this run and earlier ones
    failures: list[SourceError] = field(default_factory=list)  # parts the source could not give whole
    waited_seconds: float = 0.0
    device: str | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.recipe)

    @property
    def rule(self) -> BucketRule:
        return self.config.bucket_rule(self.recipe["spatial_compression_ratio"])

    def count(self, encoded: int, skipped: int) -> None:
        """Note that so many more samples are dealt with, and report it."""
        self.encoded += encoded
        self.skipped += skipped
        self._done += encoded + skipped
        self.report(Progress(self.total, self._done, self.skipped))

    def resume(self, plan: Plan, parts: Sequence[PartInfo]) -> None:
        """Note how much there is in all, and what earlier runs committed."""
        self._parts, self._parts_done = plan.num_parts, len(parts)
        self.skipped = sum(part.num_skipped for part in parts)
        self._done = self.skipped + sum(part.num_samples for part in parts)
        self._estimate(plan.num_entries)
        self.report(Progress(self.total, self._done, self.skipped))

    def count_part(self) -> None:
        """Note that one more part is dealt with."""
        self._parts_done += 1
        self._estimate(self.total)
        self.report(Progress(self.total, self._done, self.skipped))

    def _estimate(self, num_entries: int | None) -> None:
        if self.source.entries_per_part is None:
            self.total = num_entries
        elif self._parts_done:
            self.total = self._done * self._parts // self._parts_done


def start_run(
    source: str, out: Path, config: EncodeConfig, options: RunOptions, source_options: SourceOptions | None
) -> Run:
    """Find source and model and refuse what can't work, before anything is written."""
    origin = open_source(source, source_options)
    _refuse_foreign_folder(out, origin)
    model = find_model(config, options)
    config.bucket_rule(model.checkpoint.spec.spatial_compression_ratio)
    known = load_plan(out)
    recipe = recipe_of(config, identify(model, config, known.recipe if known else {}))
    reading = Origin(origin.uri, (source_options or SourceOptions()).to_json())
    run = Run(origin, reading, out, config, options, model, recipe, lambda _: None)
    run.retry_skipped = options.retry_skipped
    try:
        if known is not None:
            _refuse_other_recipe(out, known.recipe, recipe)
            _refuse_other_reading(out, known.origin, reading)
    except RecipeMismatchError:
        if not options.overwrite:
            raise
        run.replaces = True
    return run


def delete_cache(cache: Path) -> None:
    """Delete what a cache consists of, and nothing else: first what says that its parts are whole."""
    for name in (INDEX_NAME, "skipped.jsonl", PLAN_NAME):
        (cache / name).unlink(missing_ok=True)
    for suffix in ("parquet", "safetensors"):
        for path in sorted((cache / PARTS_FOLDER).glob(f"part-*.{suffix}")):
            path.unlink()


def find_model(config: EncodeConfig, options: RunOptions) -> Model:
    """The model the recipe names, fetched but not read yet. Raises ModelError, or UsageError for the device."""
    device = pick_device(options.device)
    checkpoint = resolve(
        config.model,
        revision=config.revision,
        token=options.token,
        cache_dir=options.cache_dir,
        offline=options.offline,
    )
    return Model(checkpoint, device, config.compute_dtype or config.dtype)


def identify(model: Model, config: EncodeConfig, known: Mapping[str, Any]) -> ModelIdentity:
    """The model as the recipe names it. Its weights are hashed unless ``known``, the recipe of the cache as it is, is
    of the very same commit of the same repo.

    Raises ModelError where no scaling factor is known: 1 is never assumed.
    """
    found = model.checkpoint
    scaling_factor = config.scaling_factor or found.scaling_factor
    if scaling_factor is None:
        raise ModelError(
            f"{found.name} publishes no scaling factor. Pass one with --scaling-factor: 1 / std of its raw latents "
            "over your data."
        )
    same = found.revision is not None and (known.get("repo_id"), known.get("revision")) == (
        found.repo_id,
        found.revision,
    )
    return ModelIdentity(
        name=found.name,
        repo_id=found.repo_id,
        revision=found.revision,
        weights_sha256=known["weights_sha256"] if same else model.encoder_sha256(),
        spatial_compression_ratio=found.spec.spatial_compression_ratio,
        latent_channels=found.spec.latent_channels,
        scaling_factor=scaling_factor,
    )


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
