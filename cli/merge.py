"""``dcae-cache merge``: several caches in one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dcae_cache.text import counted

from .options import AsJson
from .output import resumable, show, show_json


def merge(
    caches: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="Two caches or more, of one recipe.")],
    out: Annotated[Path, typer.Option(help="A new folder, or that of a merge to go on with.")],
    as_json: AsJson = False,
) -> None:
    """Make one cache of several by copying rows; nothing is encoded. Run the same command again to resume it.

    dcae-cache merge photos drawings --out all
    """
    from dcae_cache.curate.choices import merge_caches

    with resumable("parts", "copying") as progress:
        summary = merge_caches(caches, out, progress)
    if as_json:
        show_json(asdict(summary))
        return
    show(f"{summary.out} holds {counted(summary.num_samples, 'sample')} in {counted(summary.num_parts, 'part')}.")
