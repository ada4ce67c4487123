"""``dcae-cache export``: a cache in the format of a trainer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from dcae_cache.text import counted

from .options import AsJson, Cache
from .output import resumable, say, show, show_json


def export(
    cache: Cache,
    to: Annotated[
        Literal["wids", "npy", "lightningdit", "edm2", "mds", "webdataset"],
        typer.Option("--to", help="The format; docs/export.md says which trainer reads which."),
    ],
    out: Annotated[Path, typer.Option(help="A new folder, or the one of an export to go on with.")],
    where: Annotated[
        str | None,
        typer.Option(metavar="CONDITION", help="Only samples for which it holds: \"label == '3'\"."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", min=0, help="In an order that follows from this number.")
    ] = None,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Samples of a file, and between two resumes.")] = None,
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="fp16: mds and webdataset alone; bf16: webdataset.")
    ] = "fp32",
    tensor: Annotated[
        Literal["npy", "safetensors"], typer.Option(help="What latents are written as, webdataset alone.")
    ] = "npy",
    as_json: AsJson = False,
) -> None:
    """Write the latents of a cache in the format of a trainer. Run the same command again to resume it.

    dcae-cache export latents --to wids --out for-sana --shuffle 0

    dcae-cache export latents --to npy --out for-efficientvit
    """
    from dcae_cache.export.exporter import ExportOptions
    from dcae_cache.export.run import export_cache

    options = ExportOptions(
        where=where, limit=limit, shuffle=shuffle, shard_size=shard_size, dtype=dtype, tensor=tensor
    )
    with resumable("samples", f"writing {to}", "files") as progress:
        summary = export_cache(cache, to, out, options, progress)
    for caution in summary.cautions:
        say(f"warning: {caution}")
    if as_json:
        show_json(asdict(summary))
        return
    reused = f", {summary.shards_reused} of them there already" if summary.shards_reused else ""
    show(f"{summary.out}: {counted(summary.num_samples, 'sample')} in {counted(summary.num_shards, 'shard')}{reused}")
    for line in summary.note.splitlines():
        show(line)
