"""The end of a run: the index over the committed parts, the summary, and what a person must be told.

Knows nothing of how parts are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..cache.finalize import skipped_rows
from ..cache.growth import Changes
from ..cache.parts import PartInfo
from ..errors import DamagedSourceError, SourceError, StrictError, TooManySkippedError
from ..ledger import Ledger
from ..sources.base import DAMAGED
from .progress import Counter
from .run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did, and what the cache holds now. Counts are of samples unless a name says otherwise."""

    out: str
    complete: bool
    encoded: int  # by this run
    copied: int  # by this run, from latents that were stored for the same image
    skipped: dict[str, int]  # reason -> samples, in the whole cache
    num_samples: int  # stored, in the whole cache
    num_bytes: int  # of all shards
    num_parts: int  # committed
    parts_reused: int  # of these, committed by earlier runs
    vanished: int  # planned, but gone from the source
    pruned: int  # of these, dropped
    indexed: bool  # False for one of several jobs: the last one writes the index
    num_processes: int
    device: str | None  # None: nothing was left to encode
    seconds: float
    waited_seconds: float  # a device stood still between batches, for want of pixels; the mean of the processes
    busy_seconds: float = 0.0  # a device worked; the mean of the processes
    redone_in_fp32: int = 0  # by this run: images that overflowed in half precision
    kernels: str | None = None  # what computed the steps between convolutions: "triton" or "eager"; None: nothing did
    refreshed: int = 0  # rows whose captions, labels or attributes had changed
    ledger: dict[str, Any] = field(default_factory=dict)  # what was read of the source and what wasn't
    num_images: int | None = None  # in the whole cache, skipped ones too, where an image may have several latents
    left_out: int | None = None  # sizes that images are too small for, likewise

    @property
    def images_per_second(self) -> float:
        """Images that were encoded, not copied, over the whole run's time."""
        return self.encoded / self.seconds if self.seconds else 0.0

    @property
    def idle_share(self) -> float:
        """Of the time from the first batch to the last: how much of it a device stood still, 0 to 1, by its own
        marks. Above a tenth or so the input side is what limits the run."""
        both = self.waited_seconds + self.busy_seconds
        return self.waited_seconds / both if both else 0.0


def summarise(run: Run, counter: Counter, index: dict[str, Any], changes: Changes, seconds: float) -> Summary:
    """What the run did, from its counter, and what the cache holds, from its index."""
    totals, tally = index["totals"], counter.of_this_run()
    return Summary(
        out=run.name,
        complete=index["complete"],
        encoded=tally.encoded - tally.copied,
        copied=tally.copied,
        skipped=index["skipped"],
        num_samples=totals["num_samples"],
        num_bytes=totals["num_bytes"],
        num_parts=totals["num_parts"],
        parts_reused=0,
        vanished=changes.vanished,
        pruned=changes.vanished if run.options.prune else 0,
        indexed=index["complete"] or run.options.part_range is None,
        num_processes=counter.num_processes,
        device=", ".join(sorted(counter.devices)) or None,
        seconds=seconds,
        waited_seconds=tally.waited_seconds / counter.num_processes,
        busy_seconds=tally.busy_seconds / counter.num_processes,
        redone_in_fp32=tally.redone,
        kernels=", ".join(tally.kernels) or None,
        num_images=totals.get("num_images"),
        left_out=totals.get("num_left_out"),
    )


def tell_redone(counter: Counter) -> None:
    """Say once, at the end, which images took a second, slower encoding."""
    tally = counter.of_this_run()
    if tally.redone:
        more = tally.redone - len(tally.redone_keys)
        named = ", ".join(tally.redone_keys) + (f" and {more} more" if more else "")
        counter.notify(f"{tally.redone} images overflowed and were encoded again in fp32, which is slower: {named}.")


def check_sources(run: Run, failures: Sequence[str], summary: Summary, infos: Sequence[PartInfo]) -> None:
    """Say at the end what the source could not give: parts to try again, and files that broke off."""
    if failures:
        raise SourceError(
            f"{len(failures)} of {summary.num_parts + len(failures)} parts could not be read. "
            f"{failures[0]} The other parts are in the cache: run the same command again to add what is missing."
        )
    num_damaged = summary.skipped.get(DAMAGED, 0)
    if num_damaged and not run.options.allow_damaged:
        first = next(row for row in skipped_rows(run.cache, infos) if row["reason"] == DAMAGED)
        raise DamagedSourceError(
            f"{num_damaged} input files are damaged, the first: {first['detail']}. What comes before the damage is in "
            "the cache. Mend them and run the same command again, or accept the loss with `allow_damaged`."
        )


def check_ledger(ledger: Ledger) -> None:
    """Raise StrictError where anything was left out or matched nothing."""
    faults = ledger.faults()
    if faults:
        raise StrictError(
            f"`strict` was asked for, and there are {'; '.join(faults)}. The cache is usable; mend the source, or run "
            "without `strict`."
        )


def check_skip_rate(run: Run, summary: Summary, infos: Sequence[PartInfo]) -> None:
    """Raise TooManySkippedError where all samples were skipped, or a larger share than ``max_skip_rate`` allows."""
    limit = run.options.max_skip_rate
    skipped = sum(summary.skipped.values())
    total = skipped + summary.num_samples
    if skipped == total > summary.skipped.get(DAMAGED, 0):
        reason = max(summary.skipped, key=lambda name: summary.skipped[name])
        first = next(row for row in skipped_rows(run.cache, infos) if row["reason"] == reason)
        raise TooManySkippedError(
            f"All {total} samples were skipped, {summary.skipped[reason]} of them as {reason}; the first: "
            f"{first['key']}: {first['detail']}. All reasons are in {summary.out}/skipped.jsonl."
        )
    if limit is not None and total and skipped / total > limit:
        raise TooManySkippedError(
            f"{skipped} of {total} samples were skipped, {skipped / total:.2%}; `max_skip_rate` allows {limit:.2%}. "
            f"The cache is usable; the reasons are in {summary.out}/skipped.jsonl."
        )
