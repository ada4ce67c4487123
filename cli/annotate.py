"""``dcae-cache annotate``: captions, labels or scores joined from a table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dcae_cache.text import counted

from .options import AsJson, Cache
from .output import resumable, say, show, show_json


def annotate(
    cache: Cache,
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A .parquet, .csv, .tsv or .jsonl file.")],
    column: Annotated[str, typer.Option(help="The table's column of values.")],
    key: Annotated[str, typer.Option(help="Its column of the samples' keys.")] = "key",
    name: Annotated[
        str | None, typer.Option("--as", help="caption, label, or an attribute's name; the column's unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Join captions, labels or other facts from a table by key. Latents are not touched.

    dcae-cache annotate latents captions.parquet --column long --as caption
    """
    from dcae_cache.curate.annotate import annotate_cache

    with resumable("parts", "annotating") as progress:
        summary = annotate_cache(cache, table, column, key=key, name=name, progress=progress)
    if as_json:
        show_json(asdict(summary))
        return
    show(
        f"{counted(summary.changed, 'sample')} changed, {summary.unchanged} had the value already, the table says "
        f"nothing of {summary.untold}."
    )
    if summary.unmatched:
        say(
            f"warning: {counted(summary.unmatched, 'key')} of {table} not in the cache, like {summary.first_unmatched}"
        )
