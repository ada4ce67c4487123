"""``dcae-cache filter``: the samples of a cache that a condition chooses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dcae_cache.text import counted

from .options import AsJson, Cache
from .output import resumable, show, show_json


def filter_cache(
    cache: Cache,
    where: Annotated[str, typer.Option(metavar="CONDITION", help="Which samples: \"label == '3' and aspect < 2\".")],
    out: Annotated[Path, typer.Option(help="A new folder, or that of the same command to go on with.")],
    as_json: AsJson = False,
) -> None:
    """Make a cache of the samples for which a condition holds. Run the same command again to resume it.

    dcae-cache filter latents --where "attributes.score > 5" --out good
    """
    from dcae_cache.curate.choices import filter_cache as make

    with resumable("parts", "copying") as progress:
        summary = make(cache, out, where, progress)
    if as_json:
        show_json(asdict(summary))
        return
    show(f"{summary.out} holds {counted(summary.num_samples, 'sample')} in {counted(summary.num_parts, 'part')}.")
