"""The model that imported latents are said to be of, and the recipe that says so. Knows nothing of latents.

How the images were fitted is not known; the recipe states what the format's own tools do, so that `verify` with the
images at hand has something to go by.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ..cache.recipe import IMPORTED, ModelIdentity, recipe_of
from ..config import EncodeConfig
from ..errors import ModelError
from ..images.bucket_tables import TABLES
from ..images.buckets import BucketKind
from ..models import zoo
from ..models.hub import resolve
from ..models.options import HubOptions
from ..records import Bucket, DtypeName


@dataclass(frozen=True, slots=True)
class StatedModel:
    """The autoencoder as its table or its files describe it; its weights were not looked at."""

    name: str
    latent_channels: int
    spatial_compression_ratio: int
    scaling_factor: float


def find_model(name: str, scaling_factor: float | None, revision: str | None, hub: HubOptions) -> StatedModel:
    """The model of that name. Files are fetched only for one that the table of names doesn't describe.

    Raises ModelError where there is none, or where nobody says its scaling factor.
    """
    entry = None if Path(name).expanduser().is_dir() else zoo.find(name)
    if entry is not None and entry.spec is not None:
        called, spec, factor = entry.name, entry.spec, entry.scaling_factor
    else:
        found = resolve(name, hub, revision=revision)
        called, spec, factor = found.name, found.spec, found.scaling_factor
    factor = scaling_factor or factor
    if factor is None:
        raise ModelError(f"{called} publishes no scaling factor. Pass the one that was used with `scaling_factor`.")
    return StatedModel(called, spec.latent_channels, spec.spatial_compression_ratio, factor)


def recipe_of_import(
    name: str, model: StatedModel, dtype: DtypeName, buckets: Collection[Bucket], facts: dict[str, Any]
) -> dict[str, Any]:
    """The recipe of an imported cache: like any other's, and IMPORTED, which no other has, with ``facts``.

    ``buckets``: sizes in pixels that occur. ``facts["flip"]`` goes where other recipes have it.
    """
    bucket, resolution = _rule(buckets)
    config = EncodeConfig(
        model=name,
        resolution=resolution,
        bucket=bucket,
        buckets=tuple(map(str, buckets)) if bucket == "list" else (),
        crop="adm" if bucket == "square" else "center",
        dtype=dtype,
        flip=facts["flip"],
    )
    identity = ModelIdentity(
        name=model.name,
        repo_id=None,
        revision=None,
        weights_sha256=None,
        spatial_compression_ratio=model.spatial_compression_ratio,
        latent_channels=model.latent_channels,
        scaling_factor=model.scaling_factor,
    )
    return recipe_of(config, identity) | {IMPORTED: {key: value for key, value in facts.items() if key != "flip"}}


def _rule(buckets: Collection[Bucket]) -> tuple[BucketKind, int]:
    """The rule of this tool that gives such sizes, and its resolution."""
    first, area = min(buckets), max(bucket.height * bucket.width for bucket in buckets)
    if len(buckets) == 1 and first.height == first.width:
        return "square", first.height
    for name in get_args(BucketKind):
        if name in TABLES and set(buckets) <= set(TABLES[name]):
            kind: BucketKind = name
            return kind, int(name.rpartition("-")[2])
    return "list", round(area**0.5)
