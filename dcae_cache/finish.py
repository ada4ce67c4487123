"""The end of a run: the index over the committed parts, the summary, and what a person must be told.

Knows nothing of how parts are made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .errors import DamagedSourceError, SourceError, TooManySkippedError
from .files import replace_atomically
from .index import CacheFacts, build_index, save_index
from .plan import Changes, Plan
from .run import Run
from .shards import PartInfo, read_rows
from .sources.base import DAMAGED


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did, and what the cache holds now."""

    out: str
    complete: bool
    encoded: int  # by this run
    copied: int  # by this run, from latents that were stored for the same image
    skipped: dict[str, int]  # reason -> samples, in the whole cache
    num_samples: int  # stored, in the whole cache
    num_bytes: int
    num_parts: int
    parts_reused: int
    vanished: int  # planned, but gone from the source
    pruned: int  # of these, dropped
    device: str | None  # None: nothing was left to encode
    seconds: float
    waited_seconds: float  # the encoder stood still for want of pixels

    @property
    def images_per_second(self) -> float:
        return self.encoded / self.seconds if self.seconds else 0.0


def write_index(run: Run, plan: Plan, infos: list[PartInfo]) -> dict[str, Any]:
    """Write skipped.jsonl and, last, the index over the committed parts."""
    facts = CacheFacts(
        creator=f"dcae-cache {__version__}",
        origin=plan.origin,
        recipe=run.recipe,
        fingerprint=run.fingerprint,
        num_planned=plan.num_parts,
    )
    index = build_index(run.cache, facts, infos)
    with replace_atomically(run.cache / "skipped.jsonl") as file:
        for info in infos:
            if not info.num_skipped:
                continue
            for row in read_rows(run.cache, info.name).to_pylist():
                if row["status"] != "ok":
                    line = {name: row[name] for name in ("key", "source", "reason", "detail")}
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    save_index(run.cache, index)
    return index


def summarise(run: Run, index: dict[str, Any], changes: Changes, reused: int, seconds: float) -> Summary:
    totals = index["totals"]
    return Summary(
        out=str(run.cache),
        complete=index["complete"],
        encoded=run.encoded - run.copied,
        copied=run.copied,
        skipped=index["skipped"],
        num_samples=totals["num_samples"],
        num_bytes=totals["num_bytes"],
        num_parts=totals["num_parts"],
        parts_reused=reused,
        vanished=changes.vanished,
        pruned=changes.vanished if run.options.prune else 0,
        device=run.device,
        seconds=seconds,
        waited_seconds=run.waited_seconds,
    )


def check_sources(run: Run, summary: Summary) -> None:
    """Say at the end what the source could not give: parts to try again, and files that broke off."""
    if run.failures:
        raise SourceError(
            f"{len(run.failures)} of {summary.num_parts + len(run.failures)} parts could not be read. "
            f"{run.failures[0]} The other parts are in the cache: run the same command again to add what is missing."
        )
    num_damaged = summary.skipped.get(DAMAGED, 0)
    if num_damaged and not run.options.allow_damaged:
        lines = (run.cache / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
        first = next(row for row in map(json.loads, lines) if row["reason"] == DAMAGED)
        raise DamagedSourceError(
            f"{num_damaged} input files are damaged, the first: {first['detail']}. What comes before the damage is in "
            "the cache. Mend them and run the same command again, or accept the loss with --allow-damaged."
        )


def check_skip_rate(summary: Summary, limit: float | None) -> None:
    skipped = sum(summary.skipped.values())
    total = skipped + summary.num_samples
    if limit is not None and total and skipped / total > limit:
        raise TooManySkippedError(
            f"{skipped} of {total} samples were skipped, {skipped / total:.2%}; --max-skip-rate allows {limit:.2%}. "
            f"The cache is usable; the reasons are in {Path(summary.out) / 'skipped.jsonl'}."
        )
