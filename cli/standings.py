"""How autoencoders side by side are shown: a table, their failures and notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcae_cache.text import human_bytes

from .output import say, show_table

if TYPE_CHECKING:
    from dcae_cache.compare.side_by_side import Standing


def show_standings(standings: Sequence[Standing]) -> None:
    """A line for each that did not fail; cautions, failures and notes on stderr."""
    for standing in standings:
        if standing.caution:
            say(f"caution: {standing.caution}")
        if standing.failure:
            say(f"{standing.name} failed: {standing.failure}")
    whole = [standing for standing in standings if standing.failure is None]
    if not whole:
        return
    sets = [score.label if score.name == "FID" else score.name for score in whole[0].set_scores]
    head = ("model", "f", "c", "PSNR dB", "SSIM", "MSE", *sets, "bytes", "ratio", "encode s", "decode s", "peak")
    show_table(head, [_line(standing) for standing in whole])
    for note in dict.fromkeys(f"{score.name}: {score.note}" for s in whole for score in s.set_scores if score.note):
        say(note)


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
