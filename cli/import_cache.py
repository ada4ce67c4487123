"""``dcae-cache import``: latents that others made become a cache."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from dcae_cache.records import DtypeName
from dcae_cache.text import counted, human_bytes

from .options import AsJson, CacheDir, Offline, Token
from .output import resumable, show, show_json


def import_cache(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the latents.")],
    kind: Annotated[
        Literal["npy", "lightningdit", "wids"], typer.Option("--from", help="Their format; see docs/export.md.")
    ],
    model: Annotated[str, typer.Option(help="The autoencoder that made them: name, hub repo or folder.")],
    scaled: Annotated[
        Literal["yes", "no"], typer.Option(help="Are they multiplied by the model's scaling factor already?")
    ],
    out: Annotated[Path, typer.Option(help="The cache: a new folder, or that of an import to go on with.")],
    dtype: Annotated[DtypeName | None, typer.Option(help="Of the stored latents; as found unless given.")] = None,
    scaling_factor: Annotated[
        float | None, typer.Option(min=0, help="Instead of the model's own; needed where none is published.")
    ] = None,
    any_scale: Annotated[
        bool, typer.Option("--any-scale", help="Even if their standard deviation speaks against --scaled.")
    ] = False,
    part_size: Annotated[int, typer.Option(min=1, help="Samples per part: the unit of commit and resume.")] = 1024,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub repo.")] = None,
    cache_dir: CacheDir = None,
    token: Token = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Make a cache of latents in a trainer's format. Run the same command again to resume it.

    dcae-cache import imagenet-latents --from npy --model f32c32-in --scaled yes --out latents
    """
    from dcae_cache.importing.run import ImportRequest, import_cache
    from dcae_cache.models.options import HubOptions

    request = ImportRequest(
        kind=kind,
        model=model,
        scaled=scaled == "yes",
        dtype=dtype,
        scaling_factor=scaling_factor,
        revision=revision,
        part_size=part_size,
        any_scale=any_scale,
        hub=HubOptions(cache_dir=cache_dir, token=token, offline=offline),
    )
    with resumable("samples", "importing") as progress:
        summary = import_cache(folder, out, request, progress)
    if as_json:
        show_json(asdict(summary))
        return
    show(
        f"{summary.out} holds {counted(summary.num_samples, 'latent')} in {counted(summary.num_parts, 'part')}, "
        f"{human_bytes(summary.num_bytes)}, {summary.dtype}, scaled by {summary.scaling_factor:g}."
    )
