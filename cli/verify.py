"""``dcae-cache verify``: is the cache whole, and does it decode to the images it was made from?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .output import ProgressBar, say, show_json

if TYPE_CHECKING:
    from ..verify import VerifyReport

EXIT_FOUND = 3
_SHOWN = 20


def verify(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A folder made by `dcae-cache encode`.")],
    source: Annotated[str | None, typer.Option(help="Where the images are now, if they moved.")] = None,
    samples: Annotated[str, typer.Option(metavar="N|all", help="How many latents to decode.")] = "64",
    seed: Annotated[int, typer.Option(min=0, help="Which ones are drawn.")] = 0,
    integrity_only: Annotated[
        bool, typer.Option("--integrity-only", help="Check the files alone: no source, no model.")
    ] = False,
    min_psnr: Annotated[float | None, typer.Option(help="Least mean PSNR in dB; exit code 3 below it.")] = None,
    min_ssim: Annotated[float | None, typer.Option(help="Least mean SSIM; exit code 3 below it.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the cache's model is now, if it moved.")] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to decode.")] = "auto",
    cache_dir: Annotated[str | None, typer.Option(help="The hub's cache folder.")] = None,
    token: Annotated[
        str | None, typer.Option(help="Hub token; the saved one unless given.", envvar="HF_TOKEN")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only models that are in the hub's cache.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check a cache: its files against their hashes, then a sample of latents decoded against the source images.

    Exit code 3 when something is wrong; the message names it and what mends it.
    """
    from ..verify import VerifyOptions, verify_cache

    options = VerifyOptions(
        source=source,
        samples=_count(samples),
        seed=seed,
        integrity_only=integrity_only,
        min_psnr=min_psnr,
        min_ssim=min_ssim,
        model=model,
        device=device,
        cache_dir=cache_dir,
        token=token,
        offline=offline,
    )
    bars = {"parts": ProgressBar("parts", "checking files"), "samples": ProgressBar("samples", "decoding")}
    try:
        result = verify_cache(cache, options, lambda what, done, total: bars[what].update(done, total))
    finally:
        for bar in bars.values():
            bar.close()
    if as_json:
        show_json(_as_json(result))
    else:
        _show(cache, result)
    if not result.ok:
        raise typer.Exit(EXIT_FOUND)


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise UsageError(f"--samples is a number of samples or all, not {text!r}.")
    return int(text)


def _as_json(result: VerifyReport) -> dict[str, object]:
    return {
        "ok": result.ok,
        "num_parts": result.num_parts,
        "num_samples": result.num_samples,
        "findings": [asdict(finding) for finding in result.findings],
        "mean": asdict(result.mean) if result.mean else None,
        "samples": {key: asdict(scores) for key, scores in result.scores.items()},
    }


def _show(cache: Path, result: VerifyReport) -> None:
    for finding in result.findings[:_SHOWN]:
        say(f"problem: {finding}")
    if len(result.findings) > _SHOWN:
        say(f"... and {len(result.findings) - _SHOWN} more; all of them with --json")
    if result.mean:
        mean = result.mean
        typer.echo(
            f"decoded {len(result.scores)} of {result.num_samples} samples: "
            f"MSE {mean.mse:.2f}, PSNR {mean.psnr:.2f} dB, SSIM {mean.ssim:.4f}"
        )
        typer.echo("worst: " + ", ".join(f"{key} {scores.psnr:.2f} dB" for key, scores in result.worst))
    verdict = "whole" if result.ok else f"has {len(result.findings)} problems"
    typer.echo(f"{cache}: {result.num_samples} samples in {result.num_parts} parts, {verdict}")
