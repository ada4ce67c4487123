"""``dcae-cache decode``: stored latents back to image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .output import ProgressBar, show_json


def decode(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A folder made by `dcae-cache encode`.")],
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
    model: Annotated[str | None, typer.Option(help="Where the cache's model is now, if it moved.")] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to decode.")] = "auto",
    cache_dir: Annotated[str | None, typer.Option(help="The hub's cache folder.")] = None,
    token: Annotated[
        str | None, typer.Option(help="Hub token; the saved one unless given.", envvar="HF_TOKEN")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only models that are in the hub's cache.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout: the files.")] = False,
) -> None:
    """Decode latents of a cache to image files, each as large as its bucket. The source is not needed."""
    from ..autoencoders import HubOptions
    from ..decoding import DecodeOptions, decode_samples

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
        typer.echo(f"{len(files)} images in {out}")
