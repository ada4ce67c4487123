"""``dcae-cache verify``: is the cache whole, and does it decode to the images it was made from?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcae_cache.sources.base import DEFAULT_MAX_BYTES, SourceOptions
from dcae_cache.text import counted

from .exit_codes import EXIT_FAILED, EXIT_FOUND
from .options import AsJson, Cache, CacheDir, Device, LpipsWeights, MaxBytes, MovedModel, Offline, Token, number_or
from .output import ProgressBar, say, show, show_json
from .side_by_side import show_side_by_side

if TYPE_CHECKING:
    from dcae_cache.verify.checks import VerifyReport

_SHOWN = 20


def verify(
    cache: Cache,
    source: Annotated[str | None, typer.Option(help="Where the images are now, if they moved.")] = None,
    edited: Annotated[
        list[str] | None,
        typer.Option(metavar="caption|label|attributes", help="A column that was edited on purpose: not compared."),
    ] = None,
    allow_pipe: Annotated[
        bool, typer.Option("--allow-pipe", help="Run the shell command that the images come from.")
    ] = False,
    max_bytes: MaxBytes = DEFAULT_MAX_BYTES,
    samples: Annotated[str, typer.Option(metavar="N|all", help="How many latents to decode.")] = "64",
    seed: Annotated[int, typer.Option(min=0, help="Which ones are drawn.")] = 0,
    integrity_only: Annotated[
        bool, typer.Option("--integrity-only", help="Check the files alone: no source, no model.")
    ] = False,
    min_psnr: Annotated[float | None, typer.Option(help="Least mean PSNR in dB; exit code 3 below it.")] = None,
    min_ssim: Annotated[float | None, typer.Option(help="Least mean SSIM; exit code 3 below it.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|REPO|DIR|CACHE",
            help="Another autoencoder, as `compare --model` takes them, or another cache, to put beside this one on "
            "the same pixels; as often as you like.",
        ),
    ] = None,
    fid: Annotated[bool, typer.Option("--fid", help="FID over the decoded samples; give 2,048 or more.")] = False,
    fid_weights: Annotated[
        Path | None, typer.Option(help="torch-fidelity's Inception weights, for FID without a network.")
    ] = None,
    lpips_weights: LpipsWeights = None,
    model: MovedModel = None,
    device: Device = "auto",
    cache_dir: CacheDir = None,
    token: Token = None,
    offline: Offline = False,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page to look at, index.html, and report.json there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a cache: its files against their hashes; then a sample of latents, decoded against the source images, and
    against a fresh encoding of them.

    Exit code 3 when something is wrong; the message names it and what mends it.
    """
    from dcae_cache.files import make_folder
    from dcae_cache.models.options import HubOptions
    from dcae_cache.verify.checks import VerifyOptions, verify_cache
    from dcae_cache.verify.report import write_report
    from dcae_cache.verify.report.values import values_of

    options = VerifyOptions(
        source=source,
        edited=tuple(edited or ()),
        allowed=SourceOptions(allow_pipe=allow_pipe, max_bytes=max_bytes),
        samples=_count(samples),
        seed=seed,
        integrity_only=integrity_only,
        min_psnr=min_psnr,
        min_ssim=min_ssim,
        against=tuple(against or ()),
        fid=fid,
        fid_weights=fid_weights,
        lpips_weights=lpips_weights,
        model=model,
        pictures=report is not None,
        device=device,
        hub=HubOptions(cache_dir=cache_dir, token=token, offline=offline),
    )
    if report is not None:
        make_folder(report)  # better now than after hours of work
    bars = {
        "parts": ProgressBar("parts", "checking files"),
        "samples": ProgressBar("samples", "decoding"),
        "images": ProgressBar("images", "comparing"),
    }
    try:
        result = verify_cache(cache, options, lambda what, done, total: bars[what].update(done, total))
    finally:
        for bar in bars.values():
            bar.close()
    if report is not None:
        say(f"report: {write_report(result, report)}")
    if as_json:
        show_json(values_of(result))
    else:
        _show(cache, result)
    if not result.ok:
        raise typer.Exit(EXIT_FOUND)
    if result.side_by_side is not None and against and all(side.failure for side in result.side_by_side.standings[1:]):
        raise typer.Exit(EXIT_FAILED)


def _count(text: str) -> int | None:
    return number_or("all", text, "`samples` is a number of samples or all")


def _show(cache: str, result: VerifyReport) -> None:
    for finding in result.findings[:_SHOWN]:
        say(f"problem: {finding}")
    if len(result.findings) > _SHOWN:
        say(f"... and {len(result.findings) - _SHOWN} more; all of them with --json")
    for warning in result.warnings:
        say(f"warning: {warning}")
    if result.mean:
        mean, worst = result.mean, result.ranked[:3]
        show(
            f"decoded {len(result.checked)} of {result.num_samples} samples: PSNR {mean.psnr:.2f} dB, "
            f"SSIM {mean.ssim:.4f} (7x7 window: {mean.ssim_uniform:.4f}), MSE {mean.mse:.2f}, MAE {mean.mae:.2f}"
        )
        difference = max(sample.difference for sample in result.checked.values())
        show(f"encoded anew: stored latents differ by at most {difference:.2%}")
        show(f"latents: std {result.overall_std:.3f} over all values; scaled ones of photographs have about 1")
        show("worst: " + ", ".join(f"{key} {result.checked[key].scores.psnr:.2f} dB" for key in worst))
    if result.side_by_side is not None:
        _show_side_by_side(result)
    problems = counted(len(result.findings), "problem")
    verdict = "whole" if result.ok else f"has {problems}"
    size = f"{counted(result.num_samples, 'sample')} in {counted(result.num_parts, 'part')}"
    show(f"{cache}: {size}, {verdict}")


def _show_side_by_side(result: VerifyReport) -> None:
    side = result.side_by_side
    assert side is not None
    for note in side.notes:
        say(f"note: {note}")
    show_side_by_side(side.standings)
    show(f"{side.num_images} images, the same for all; times are for one image")
    if result.lpips_note:
        show(f"LPIPS not computed: {result.lpips_note}")
