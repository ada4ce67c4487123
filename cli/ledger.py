"""What was read of a source and what was not, as a person reads it."""

from __future__ import annotations

from dcae_cache.ledger import Ledger
from dcae_cache.text import counted


def ledger_lines(ledger: Ledger) -> list[str]:
    """One line of what was found, one of what is said of it, and one for each thing that should be looked at."""
    counts = ledger.counts
    left_out = ", ".join(f"{kind} {number}" for kind, number in sorted(counts.ignored.items()))
    belonging = f", {counts.notes} that belong to them" if counts.notes else ""
    lines = [
        f"Found {counts.found}: {counted(counts.images, 'image')}{belonging}"
        f"{f', {counts.strays} that belong to none' if counts.strays else ''}"
        f"{f'; left out {counts.ignored.total()} ({left_out})' if left_out else ''}.",
        f"Captions: {ledger.with_caption} with, {ledger.without_caption} without. "
        f"Labels: {ledger.with_label} with, {ledger.without_label} without.",
    ]
    if counts.strays:
        lines.append(f"{counts.strays} captions or labels belong to no image, the first: {counts.first_stray}.")
    if counts.unmatched:
        lines.append(f"{counts.unmatched} rows of metadata match no image, the first: {counts.first_unmatched}.")
    if counts.merged:
        lines.append(
            f"{counts.merged} rows were merged into others of the same image, the first: {counts.first_merged}; all "
            "their captions are in the attribute captions."
        )
    if counts.split:
        lines.append(f"{counts.split} samples have dots in their keys and were cut at the last one (--key-split).")
    if counts.unread_captions:
        lines.append(
            f"{counts.unread_captions} captions are not UTF-8, and no other encoding is sure: they are null, their "
            "bytes in the attribute caption_bytes. Name it with --caption-encoding and run again."
        )
    return lines
