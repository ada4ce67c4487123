"""``dcae-cache compare``: autoencoders side by side on a few images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcae_cache.text import without_infinity

from .exit_codes import EXIT_FAILED
from .options import AsJson, CacheDir, Device, LpipsWeights, Offline, Token, number_or
from .output import ProgressBar, say, show, show_json
from .side_by_side import show_side_by_side

if TYPE_CHECKING:
    from dcae_cache.compare.comparison import Comparison


def compare(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|REPO|DIR",
            help="A model, as often as there are models: any DC-AE; taesd, taesdxl, sdxl-vae-fp16-fix, kl-f8-d16, "
            "asymmetric-x-1-5, consistency-decoder; or any diffusers autoencoder. The shipped f32c32-tiny, which "
            "needs no network, if none is named.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the grid here, as .png or .jpg.")] = None,
    resolution: Annotated[
        str, typer.Option(metavar="N|native", help="Resize as `encode --resolution N` does; native only crops.")
    ] = "512",
    device: Device = "auto",
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the networks' arithmetic.")] = "fp32",
    amplify: Annotated[float, typer.Option(help="How many times the differences in the grid are enlarged.")] = 5.0,
    lpips_weights: LpipsWeights = None,
    cache_dir: CacheDir = None,
    token: Token = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Run autoencoders on the same images: scores, time and memory as a table, and a grid of the pictures.

    A model that can't be had takes its place with the reason, and the others go on; exit code 1 if all failed.
    """
    from dcae_cache.compare.comparison import DEFAULT_MODEL, CompareOptions, compare_images
    from dcae_cache.compare.grid import grid_format, save_grid
    from dcae_cache.models.options import HubOptions

    if out is not None:
        grid_format(out)
    options = CompareOptions(
        models=tuple(model or [DEFAULT_MODEL]),
        resolution=_resolution(resolution),
        device=device,
        dtype=dtype,
        amplify=amplify,
        lpips_weights=lpips_weights,
        hub=HubOptions(cache_dir=cache_dir, token=token, offline=offline),
    )
    bar = ProgressBar("images", "comparing")
    try:
        result = compare_images(images, options, lambda done, total: bar.update(done, total))
    finally:
        bar.close()
    if out is not None:
        save_grid(result.grid(), out)
    if as_json:
        show_json(_as_json(result, out))
    else:
        _show(result, out)
    if all(result.failure for result in result.standings):
        raise typer.Exit(EXIT_FAILED)


def _resolution(text: str) -> int | None:
    return number_or("native", text, "`resolution` is a number of pixels or native")


def _as_json(result: Comparison, out: Path | None) -> dict[str, Any]:
    values = {
        "device": str(result.device),
        "dtype": result.dtype,
        "grid": None if out is None else str(out),
        "lpips_note": result.lpips_note,
        "models": [asdict(result) for result in result.standings],
        "images": [{**asdict(image), "path": str(image.path)} for image in result.images],
    }
    cleaned: dict[str, Any] = without_infinity(values)
    return cleaned


def _show(result: Comparison, out: Path | None) -> None:
    show_side_by_side(result.standings)
    show(f"{len(result.images)} images on {result.device} in {result.dtype}; times are for one image")
    if result.lpips_note:
        show(f"LPIPS not computed: {result.lpips_note}")
    if out is not None:
        say(f"grid: {out}")
