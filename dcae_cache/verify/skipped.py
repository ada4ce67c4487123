"""Are the samples that a cache has skipped as hopeless as it says? Some of them are read again from the source.

Only reading is tried, not the model. Knows nothing of latents.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..cache.integrity import Finding
from ..cache.parts import read_rows
from ..reader.dataset import LatentDataset
from .source_images import SourceImages

# Reasons that may pass: the source was out of reach, or something in it was. What is there now is worth a word.
_PASSING = frozenset({"missing", "unreadable", "timed_out", "no_host", "damaged"})
# Reasons that the model gave: reading alone can't tell.
_OF_THE_MODEL = frozenset({"not_finite", "out_of_range"})
_AT_MOST = 1024  # samples, whatever was asked for: a dead list of URLs must not take for ever
_RETRY = "run the same encode command with `retry_skipped`"


class Heard(Protocol):
    """Who is told."""

    findings: list[Finding]
    warnings: list[str]


def check_skipped(dataset: LatentDataset, images: SourceImages, count: int | None, seed: int, heard: Heard) -> None:
    """Read ``count`` skipped samples again (None: as many as is sensible), drawn with the seed.

    One that can be read and fitted now is a finding where its reason can't have passed, else a warning.
    """
    rows = [
        (entry["name"], row["image"] or row["key"], row["reason"])
        for entry in dataset.index["parts"]
        if entry["num_skipped"]
        for row in read_rows(dataset.cache, entry["name"]).select(["key", "image", "status", "reason"]).to_pylist()
        if row["status"] != "ok" and row["reason"] not in _OF_THE_MODEL
    ]
    limit = min(_AT_MOST if count is None else count, _AT_MOST)
    order = sorted(np.random.default_rng(seed).permutation(len(rows))[:limit].tolist())
    wanted: dict[str, dict[str, str]] = {}
    for name, key, reason in (rows[place] for place in order):
        wanted.setdefault(name, {})[key] = reason
    reasons = {key: reason for keys in wanted.values() for key, reason in keys.items()}
    read = {row.image_key for row in images.reread(wanted) if row.status == "ok"}
    back = [key for key in reasons if key in read]
    for key in back:
        if reasons[key] not in _PASSING:
            what = f"was skipped as {reasons[key]}, but its image can be read and fitted"
            heard.findings.append(Finding(key, what, _RETRY))
    passed = [key for key in back if reasons[key] in _PASSING]
    if passed:
        more = f" and {len(passed) - 1} more that were" if len(passed) > 1 else ", which was"
        heard.warnings.append(f"{passed[0]}{more} skipped as {reasons[passed[0]]}, can be read now: {_RETRY}")
