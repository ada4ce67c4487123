"""``dcae-cache split``: a cache in shares that don't overlap."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dcae_cache.errors import UsageError
from dcae_cache.text import counted

from .options import AsJson, Cache
from .output import resumable, show, show_json


def split(
    cache: Cache,
    parts: Annotated[str, typer.Option(metavar="A,B,...", help="Shares that add up to 1: 0.98,0.02.")],
    out: Annotated[Path, typer.Option(help="The folder that gets the caches 0, 1 and so on.")],
    by: Annotated[
        str, typer.Option(metavar="COLUMN", help="label or attributes.NAME: samples of the same value stay together.")
    ] = "key",
    as_json: AsJson = False,
) -> None:
    """Split a cache by the hash of each key: a sample stays on its side however the cache grows.

    dcae-cache split latents --parts 0.98,0.02 --out shares
    """
    from dcae_cache.curate.choices import split_cache

    try:
        shares = [float(share) for share in parts.split(",")]
    except ValueError:
        raise UsageError(f"--parts takes numbers with commas between them, like 0.98,0.02, not {parts!r}.") from None
    with resumable("parts", "copying") as progress:
        summaries = split_cache(cache, shares, out, progress, by=by)
    if as_json:
        show_json({"shares": [asdict(summary) for summary in summaries]})
        return
    for summary in summaries:
        show(f"{summary.out} holds {counted(summary.num_samples, 'sample')} in {counted(summary.num_parts, 'part')}.")
