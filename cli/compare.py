"""``dcae-cache compare``: autoencoders side by side on a few images."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UsageError
from .output import ProgressBar, human_bytes, say, show_json, show_table

if TYPE_CHECKING:
    from ..compare import Comparison
    from ..standing import Standing

EXIT_FAILED = 1


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
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to run.")] = "auto",
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the networks' arithmetic.")] = "fp32",
    amplify: Annotated[float, typer.Option(help="How many times the differences in the grid are enlarged.")] = 5.0,
    lpips_weights: Annotated[
        Path | None, typer.Option(help="torchvision's AlexNet weights, for LPIPS without a network.")
    ] = None,
    cache_dir: Annotated[str | None, typer.Option(help="The hub's cache folder.")] = None,
    token: Annotated[
        str | None, typer.Option(help="Hub token; the saved one unless given.", envvar="HF_TOKEN")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only models that are in the hub's cache.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Run autoencoders on the same images: scores, time and memory as a table, and a grid of the pictures.

    A model that can't be had takes its place with the reason, and the others go on; exit code 1 if all failed.
    """
    from ..autoencoders import HubOptions
    from ..compare import DEFAULT_MODEL, CompareOptions, compare_images
    from ..grid import grid_format, save_grid

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
    if all(standing.failure for standing in result.standings):
        raise typer.Exit(EXIT_FAILED)


def _resolution(text: str) -> int | None:
    if text == "native":
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise UsageError(f"--resolution is a number of pixels or native, not {text!r}.")
    return int(text)


def _as_json(result: Comparison, out: Path | None) -> dict[str, Any]:
    values = {
        "device": str(result.device),
        "dtype": result.dtype,
        "grid": None if out is None else str(out),
        "lpips_note": result.lpips_note,
        "models": [asdict(standing) for standing in result.standings],
        "images": [{**asdict(image), "path": str(image.path)} for image in result.images],
    }
    plain: dict[str, Any] = _plain(values)
    return plain


def _plain(value: Any) -> Any:
    """JSON has no infinity: the PSNR of equal images becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(result: Comparison, out: Path | None) -> None:
    for standing in result.standings:
        if standing.caution:
            say(f"caution: {standing.caution}")
        if standing.failure:
            say(f"{standing.name} failed: {standing.failure}")
    whole = [standing for standing in result.standings if standing.failure is None]
    if whole:
        sets = [score.name for score in whole[0].set_scores]
        head = ("model", "f", "c", "PSNR dB", "SSIM", "MSE", *sets, "bytes", "ratio", "encode s", "decode s", "peak")
        show_table(head, [_line(standing) for standing in whole])
    typer.echo(f"{len(result.images)} images on {result.device} in {result.dtype}; times are for one image")
    if result.lpips_note:
        typer.echo(f"LPIPS not computed: {result.lpips_note}")
    if out is not None:
        say(f"grid: {out}")


def _line(standing: Standing) -> tuple[object, ...]:
    mean = standing.mean
    assert mean is not None, "a side without failure has at least one image"
    return (
        standing.name,
        standing.spatial_compression_ratio,
        standing.latent_channels,
        f"{mean.psnr:.3f}",
        f"{mean.ssim:.4f}",
        f"{mean.mse:.2f}",
        *("-" if score.value is None else f"{score.value:.4f}" for score in standing.set_scores),
        f"{standing.latent_bytes:.0f}",
        f"{standing.compression_ratio:.1f}",
        f"{standing.encode_seconds:.3g}",
        f"{standing.decode_seconds:.3g}",
        "-" if standing.peak_bytes is None else human_bytes(standing.peak_bytes),
    )
