"""``dcae-cache decode``: stored latents back to image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import AsJson, Cache, CacheDir, Device, MovedModel, Offline, Token
from .output import ProgressBar, show, show_json


def decode(
    cache: Cache,
    keys: Annotated[
        list[str], typer.Argument(metavar="KEY...", help="Keys of samples, or patterns of them; '*' is all.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to; a key with slashes gets folders below it.")],
    image_format: Annotated[
        Literal["png", "jpg", "webp"], typer.Option("--format", help="png and webp without loss, jpg of quality 95.")
    ] = "png",
    flipped: Annotated[
        bool, typer.Option("--flipped", help="The mirrored images of a cache made with --flip.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    model: MovedModel = None,
    device: Device = "auto",
    cache_dir: CacheDir = None,
    token: Token = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Decode latents of a cache to image files, each as large as its bucket. The source is not needed."""
    from dcae_cache.decode.image_files import DecodeOptions, decode_samples
    from dcae_cache.models.options import HubOptions

    options = DecodeOptions(
        format=image_format,
        flipped=flipped,
        overwrite=overwrite,
        model=model,
        device=device,
        hub=HubOptions(cache_dir=cache_dir, token=token, offline=offline),
    )
    bar = ProgressBar("images", "decoding")
    try:
        files = decode_samples(cache, keys, out, options, lambda done, total: bar.update(done, total))
    finally:
        bar.close()
    if as_json:
        show_json({"files": [str(file) for file in files]})
    else:
        show(f"{len(files)} images in {out}")
