"""How autoencoders side by side are shown: a table, their failures and notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcae_cache.text import human_bytes

from .output import say, show_table

if TYPE_CHECKING:
    from dcae_cache.compare.side_by_side import AutoencoderResult


def show_side_by_side(standings: Sequence[AutoencoderResult]) -> None:
    """A line for each that did not fail; cautions, failures and notes on stderr."""
    for result in standings:
        if result.caution:
            say(f"caution: {result.caution}")
        if result.failure:
            say(f"{result.name} failed: {result.failure}")
    whole = [result for result in standings if result.failure is None]
    if not whole:
        return
    sets = [score.label if score.name == "FID" else score.name for score in whole[0].set_scores]
    head = ("model", "f", "c", "PSNR dB", "SSIM", "MSE", *sets, "bytes", "ratio", "encode s", "decode s", "peak")
    show_table(head, [_line(result) for result in whole])
    for note in dict.fromkeys(f"{score.name}: {score.note}" for s in whole for score in s.set_scores if score.note):
        say(note)


def _line(result: AutoencoderResult) -> tuple[object, ...]:
    mean = result.mean
    assert mean is not None, "a side without failure has at least one image"
    return (
        result.name,
        result.spatial_compression_ratio,
        result.latent_channels,
        f"{mean.psnr:.3f}",
        f"{mean.ssim:.4f}",
        f"{mean.mse:.2f}",
        *("-" if score.value is None else f"{score.value:.4f}" for score in result.set_scores),
        f"{result.latent_bytes:.0f}",
        f"{result.compression_ratio:.1f}",
        f"{result.encode_seconds:.3g}",
        f"{result.decode_seconds:.3g}",
        "-" if result.peak_bytes is None else human_bytes(result.peak_bytes),
    )
