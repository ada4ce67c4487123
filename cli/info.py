"""``dcae-cache info``: what a cache holds, from its index alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcae_cache.errors import UsageError
from dcae_cache.text import counted, human_bytes

from .ledger import ledger_lines
from .options import Cache
from .output import show, show_json, show_table


def info(
    cache: Cache,
    finalize: Annotated[
        bool, typer.Option("--finalize", help="First write the index over all committed parts (after --part-range).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The index without its list of parts, as JSON.")] = False,
) -> None:
    """Show what a cache holds: model, recipe, samples, buckets, statistics, skipped ones by reason."""
    from dcae_cache.cache.brought import brought
    from dcae_cache.cache.index import load_index
    from dcae_cache.cache.ledger_file import load_ledger

    if finalize:
        from dcae_cache.cache.finalize import finalize_cache

        if "://" in cache:
            raise UsageError("`finalize` needs a cache in a folder; in an object store every run writes the index.")
        finalize_cache(Path(cache))
    with brought(cache, with_tables=False) as here:
        index = {name: value for name, value in load_index(here.folder).items() if name != "parts"}
        ledger = load_ledger(here.folder)
    if as_json:
        show_json({**index, "ledger": ledger.to_json() if ledger else None})
        return
    _show(here.name, index)
    if ledger:
        show()
        for line in ledger_lines(ledger):
            show(line)


def _show(cache: str, index: dict[str, Any]) -> None:
    model, latent, totals, recipe = index["model"], index["latent"], index["totals"], index["recipe"]
    state = "complete" if index["complete"] else "incomplete: run the same encode command again to go on"
    lines = {
        "cache": f"{cache} (format {index['version']}, {state})",
        "source": index["source"]["uri"],
        "model": model["name"] + (f" from {model['repo_id']}@{model['revision']}" if model["repo_id"] else ""),
        "weights": model["weights_sha256"] or "not known: the latents were imported",
        "latents": f"{latent['channels']} channels at 1/{latent['spatial_compression_ratio']}, {latent['dtype']}, "
        f"scaled by {latent['scaling_factor']}",
        "recipe": f"{recipe['bucket']} buckets, {_sizes(recipe)}"
        f"{', with mirrored images' if recipe['flip'] else ''} ({index['fingerprint'][:12]})",
        "samples": f"{totals['num_samples']}{_of_images(totals)} in {counted(totals['num_parts'], 'part')}, "
        f"{human_bytes(totals['num_bytes'])}",
        "skipped": ", ".join(f"{reason} {count}" for reason, count in index["skipped"].items()) or "none",
    }
    for name, value in lines.items():
        show(f"{name:8} {value}")
    mean, std = index["statistics"]["mean"], index["statistics"]["std"]
    if mean:
        show(f"mean     {min(mean):+.3f} to {max(mean):+.3f} per channel")
        show(f"std      {min(std):.3f} to {max(std):.3f} per channel")
    show()
    show_table(("bucket", "samples"), list(index["buckets"].items()))


def _sizes(recipe: dict[str, Any]) -> str:
    several = recipe.get("resolutions")
    resolution = f"resolutions {', '.join(several)}" if several else f"resolution {recipe['resolution']}"
    crop = f"{counted(recipe['crops'], 'random crop')} an image" if "crops" in recipe else f"crop {recipe['crop']}"
    return f"{resolution}, {crop}"


def _of_images(totals: dict[str, Any]) -> str:
    if "num_images" not in totals:
        return ""
    left_out = totals["num_left_out"]
    return f" of {counted(totals['num_images'], 'image')}" + (
        f" ({counted(left_out, 'size')} left out, too large for them)" if left_out else ""
    )
