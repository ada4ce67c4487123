"""Which rows of which caches make a new one: all of several, those that a condition chooses, or shares drawn by key.

Knows nothing of how rows are copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ..cache.parts import read_rows
from ..cache.recipe import recipe_changes
from ..errors import RecipeMismatchError, UsageError
from ..reader.dataset import LatentDataset
from ..reader.selection import Selection
from ..records import Origin
from .copying import CopySummary, OpenCache, Taken, copy_parts, open_cache

Progress = Callable[[int, int], None]


def merge_caches(
    caches: Sequence[str | Path], out: str | Path, progress: Progress = lambda done, total: None
) -> CopySummary:
    """One cache of all samples of several, in this order. ``progress`` hears (parts done, of how many).

    Raises RecipeMismatchError, naming each field, for caches of different recipes; UsageError where two hold the same
    key or where there is but one.
    """
    if len(caches) < 2:
        raise UsageError("Merging takes at least two caches.")
    opened = [open_cache(cache) for cache in caches]
    for other in opened[1:]:
        changes = recipe_changes(opened[0].recipe, other.recipe)
        if changes:
            raise RecipeMismatchError(
                f"{opened[0].folder} and {other.folder} were made with different recipes: {'; '.join(changes)}. Merge "
                "caches of one recipe."
            )
    _refuse_same_keys(opened)
    taken = [Taken(cache, part["name"]) for cache in opened for part in cache.index["parts"]]
    merged = [{"uri": cache.plan.origin.uri, "options": dict(cache.plan.origin.options)} for cache in opened]
    first, *others = (cache.plan.origin.options for cache in opened)
    common = {  # how images are read, for whoever says where they are
        name: value
        for name, value in first.items()
        if name not in ("chosen", "merged") and all(name in other and other[name] == value for other in others)
    }
    return copy_parts(taken, out, Origin("merged caches", {**common, "merged": merged}), progress)


def filter_cache(
    cache: str | Path, out: str | Path, where: str, progress: Progress = lambda done, total: None
) -> CopySummary:
    """A cache of the stored samples for which a condition holds, written as for ``Selection.where``; the new cache
    records it. Raises UsageError where it can't be parsed or holds for none."""
    opened = open_cache(cache)
    taken = _chosen(opened, Selection(LatentDataset(cache, columns=())).where(where))
    if not taken:
        raise UsageError(f"`where` holds for no sample of {opened.folder}: {where}")
    return copy_parts(taken, out, _marked(opened, {"where": where}), progress)


def split_cache(
    cache: str | Path,
    shares: Sequence[float],
    out: str | Path,
    progress: Progress = lambda done, total: None,
    *,
    by: str = "key",
) -> list[CopySummary]:
    """Each stored sample into one of the caches ``out``/0, ``out``/1 and so on, by the hash of its key, or of another
    column (``by``): where ``Selection.split`` puts it, however the cache grows. ``shares`` are above 0 and add up
    to 1.

    Raises UsageError for other shares, and where one of them holds no sample; then nothing is written.
    """
    if len(shares) < 2 or not all(share > 0 for share in shares) or abs(math.fsum(shares) - 1) > 1e-9:
        raise UsageError(f"`parts` are at least two numbers above 0 that add up to 1, not {list(shares)}.")
    opened = open_cache(cache)
    samples = Selection(LatentDataset(cache, columns=()))
    # Rounded, so that 0.9 + 0.05 is the 0.95 that a trainer writes.
    ends = [round(math.fsum(shares[:count]), 12) for count in range(len(shares))] + [1.0]
    taken = [_chosen(opened, samples.split(start, stop, by)) for start, stop in pairwise(ends)]
    for number, part in enumerate(taken):
        if not part:
            raise UsageError(f"Share {number} ({shares[number]:g}) of {opened.folder} would hold no sample.")
    total, done, summaries = sum(map(len, taken)), 0, []
    for number, parts in enumerate(taken):
        origin = _marked(opened, {"split": list(shares), "share": number, **({} if by == "key" else {"by": by})})
        report = partial(_report, progress, done, total)
        summaries.append(copy_parts(parts, Path(out) / str(number), origin, report))
        done += len(parts)
    return summaries


def _report(progress: Progress, before: int, total: int, done: int, of: int) -> None:
    progress(before + done, total)


def _chosen(cache: OpenCache, selection: Selection) -> list[Taken]:
    """Of each part the keys that are chosen; parts without any are left out, parts with all of them taken whole."""
    rows = selection.dataset.table(["key", "image"])
    keys, images = rows["key"], pc.coalesce(rows["image"], rows["key"])
    taken, start = [], 0
    for part in cache.index["parts"]:
        stop = start + part["num_samples"]
        numbers = selection.numbers[(selection.numbers >= start) & (selection.numbers < stop)]
        if len(numbers) == stop - start and len(numbers) and not part["num_skipped"]:
            taken.append(Taken(cache, part["name"]))
        elif len(numbers):
            chosen = (frozenset(column.take(pa.array(numbers)).to_pylist()) for column in (keys, images))
            taken.append(Taken(cache, part["name"], *chosen))
        start = stop
    return taken


def _marked(cache: OpenCache, how: dict[str, object]) -> Origin:
    """The source of a cache that holds only some of its samples. An encode run would add the others: it is refused,
    since it was made from other images."""
    origin = cache.plan.origin
    return Origin(origin.uri, {**origin.options, "chosen": [*origin.options.get("chosen", []), how]})


def _refuse_same_keys(caches: Sequence[OpenCache]) -> None:
    """Skipped samples count too: a key says where a sample came from, and two of it can't be told apart."""
    owner: dict[str, str] = {}
    for cache in caches:
        for part in cache.index["parts"]:
            for key in read_rows(cache.folder, part["name"])["key"].to_pylist():
                if key in owner:
                    raise UsageError(
                        f"{owner[key]} and {cache.folder} both have a sample {key!r}; keys must be unique. Leave the "
                        "common samples out of one of the two first, with the command filter and `where`, for "
                        "instance \"not startswith(key, 'FOLDER/')\"."
                    )
                owner[key] = str(cache.folder)
