"""What a run is to make: the plan, grown by what the source has gained, and whether the disk can hold it.

Knows nothing of devices or images.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

from ..cache.growth import Changes, grow_plan
from ..cache.listing import Listing
from ..cache.plan import Plan, load_plan, make_plan
from ..compute.devices import TORCH_DTYPES
from ..errors import CacheError
from .run import Run


def plan_parts(run: Run, listing: Listing) -> tuple[Plan, Changes]:
    """The plan of the first run, grown by what the source has gained since."""
    known = load_plan(run.cache)
    part_size = run.source.entries_per_part or run.options.part_size
    if known is None:
        plan = make_plan(listing, run.recipe, run.origin, part_size)
        changes = Changes(plan.num_entries, 0, 0)
    else:
        plan, changes = grow_plan(known, listing, part_size, prune=run.options.prune)
        if run.options.limit is not None:  # cut off: what isn't listed needn't be gone
            changes = replace(changes, vanished=0, gone=frozenset())
        plan = replace(plan, origin=run.origin)  # it may have moved
    if known is not None and plan == known:
        return known, changes
    plan.save(run.cache)
    saved = load_plan(run.cache)  # in place of the listing, which is let go
    assert saved is not None, "it was written just now"
    return saved, changes


def refuse_too_small_a_disk(run: Run, plan: Plan, todo: list[int]) -> None:
    """Raise CacheError where the latents to be made can't fit. Sizes are known for rules that keep the area."""
    recipe = run.recipe
    if run.source.entries_per_part is not None or recipe["bucket"] == "native" or run.away is not None:
        return
    sides = run.config.resolutions or (recipe["resolution"],)
    if run.config.max_upscale is not None:
        sides = sides[:1]  # images may be too small for the others
    cells = sum((side / recipe["spatial_compression_ratio"]) ** 2 for side in sides) * max(run.config.crops, 1)
    values = cells * recipe["latent_channels"] * (2 if recipe["flip"] else 1)
    expected = int(plan.count_entries(todo) * values * TORCH_DTYPES[recipe["dtype"]].itemsize)
    free = shutil.disk_usage(run.cache).free
    if expected > free:
        raise CacheError(
            f"{run.cache} would grow by about {expected / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB left. "
            "Nothing was encoded. Free some space, or choose another `out`."
        )
