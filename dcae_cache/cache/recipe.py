"""The recipe as it is written down: what was asked for, and which model it met. Knows nothing of files or devices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..config import WITH_RESOLUTION, EncodeConfig
from ..errors import CacheError
from ..records import FORMAT_VERSION
from .shape import COUNT, NUMBER, Shape, between, check_shape, mapping_of, matching, one_of, optional

# Raised when a change to images/ gives other pixels from the same file (colour handling, orientation, resampling).
# 1: colours by ICC profiles alone; area buckets in steps of 64, whatever bucket_step says. 2: see docs/images.md.
IMAGE_RULES_VERSION = 2
_AREA_STEP_OF_RULES_1 = 64


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The autoencoder a cache was made with, as far as its values depend on it."""

    name: str
    repo_id: str | None  # None for a local folder or the shipped model
    revision: str | None  # resolved commit
    weights_sha256: str | None  # of the encoder's tensors, see docs/format.md; None: imported, so not known
    spatial_compression_ratio: int
    latent_channels: int
    scaling_factor: float


def recipe_of(config: EncodeConfig, model: ModelIdentity) -> dict[str, Any]:
    """The whole recipe as flat JSON values, in the form that is stored and fingerprinted."""
    own_sizes = {"buckets": list(config.buckets)} if config.buckets else {}
    variant = {"variant": config.variant} if config.variant else {}
    rules = config.fitting(model.spatial_compression_ratio).rules if config.resolutions else ()
    several = {"resolutions": {str(rule.resolution): rule.step for rule in rules}} if rules else {}
    crops = {"crops": config.crops, "crop_seed": config.crop_seed} if config.crops else {}
    step = config.bucket_step
    if step is None:
        step = config.bucket_rule(model.spatial_compression_ratio).step
    return {
        "format_version": FORMAT_VERSION,
        "image_rules_version": IMAGE_RULES_VERSION,
        "model": model.name,
        "model_source": config.model_source,
        "repo_id": model.repo_id,
        "revision": model.revision,
        "weights_sha256": model.weights_sha256,
        "spatial_compression_ratio": model.spatial_compression_ratio,
        "latent_channels": model.latent_channels,
        "scaling_factor": model.scaling_factor,
        "dtype": config.dtype,
        "compute_dtype": config.compute_dtype or config.dtype,
        "resolution": config.resolution,
        "bucket": config.bucket,
        "crop": config.crop,
        "resize": "adm" if config.crop == "adm" else "none" if config.bucket == "native" else "lanczos",
        "max_aspect": config.max_aspect,
        "max_upscale": config.max_upscale,
        "bucket_step": step,
        "bucket_min": config.bucket_min,
        "bucket_max": config.bucket_max,
        "flip": config.flip,
        "max_pixels": config.max_pixels,
        **own_sizes,
        **variant,
        **several,
        **crops,
    }


def resolution_of(recipe: Mapping[str, Any]) -> int | None:
    """The resolution of all samples of a cache, where they have one in common."""
    if recipe["bucket"] not in WITH_RESOLUTION or IMPORTED in recipe or "resolutions" in recipe:
        return None
    return int(recipe["resolution"])


def has_views(recipe: Mapping[str, Any]) -> bool:
    """Whether an image may have several rows, so that there are the columns VIEW_COLUMNS."""
    return "resolutions" in recipe or "crops" in recipe


IMPORTED = "imported"  # a field that only the recipes of imported caches have: what is known of the latents' origin

_SIDE = between(1, 2**20)
RECIPE_SHAPE: Shape = {  # of a recipe as it is read back from a file
    "image_rules_version": COUNT,
    **dict.fromkeys(("model", "model_source", "bucket", "crop"), str),
    **dict.fromkeys(("repo_id", "revision", "weights_sha256"), optional(str)),
    "spatial_compression_ratio": between(1, 2**12),
    "latent_channels": between(1, 2**16),
    "scaling_factor": NUMBER,
    **dict.fromkeys(("dtype", "compute_dtype"), one_of("bf16", "fp16", "fp32")),
    "resolution": _SIDE,
    **dict.fromkeys(("bucket_step", "bucket_min", "bucket_max"), _SIDE),
    "max_aspect": NUMBER,
    "max_upscale": optional(NUMBER),
    "flip": bool,
    "max_pixels": COUNT,
}

# Where a model was found doesn't change a value: the hash of its weights stands for it.
_DESCRIPTIVE = frozenset({"model", "model_source", "repo_id", "revision", "variant"})


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """sha256 of the recipe's canonical JSON, less the fields that only say where the model was found."""
    values = {name: value for name, value in recipe.items() if name not in _DESCRIPTIVE}
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def recipe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Each field whose value differs, as "name: old -> new"; empty when both give the same latents."""
    names = [name for name in {**old, **new} if name not in _DESCRIPTIVE]
    changed = [name for name in names if old.get(name) != new.get(name)]
    if "weights_sha256" in changed:
        changed.insert(0, "model")
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in changed]


_SEVERAL_SHAPE: dict[str, Shape] = {  # of fields that only some recipes have
    "resolutions": mapping_of(matching(r"[1-9]\d{0,6}"), _SIDE),
    "crops": between(1, 2**20),
    "crop_seed": lambda value: isinstance(value, int),
}


def config_of(recipe: Mapping[str, Any]) -> EncodeConfig:
    """The EncodeConfig that a stored recipe came from: with it, its images are fitted as they were."""
    names = {item.name for item in fields(EncodeConfig)}
    values = {name: value for name, value in recipe.items() if name in names}
    try:
        check_shape(values, {name: shape for name, shape in _SEVERAL_SHAPE.items() if name in values}, "its recipe")
    except ValueError as error:
        raise CacheError(f"The cache's recipe makes no sense: {error}.") from error
    if recipe.get("image_rules_version") == 1 and values.get("bucket") == "area":
        values["bucket_step"] = _AREA_STEP_OF_RULES_1
    if "resolutions" in values:
        steps = values["resolutions"]
        values["resolutions"] = tuple(map(int, steps))
        if len(set(steps.values())) > 1:
            values["bucket_step"] = None  # of each resolution its own, as they are recorded
    return EncodeConfig(**values)
