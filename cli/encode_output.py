"""What ``dcae-cache encode`` says at its end: what came of a run, or, of a dry run, what would. Starts nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcae_cache.cache.recipe import has_views
from dcae_cache.ledger import Ledger
from dcae_cache.text import counted, human_bytes, human_seconds

from .ledger import ledger_lines
from .output import say, show, show_table

if TYPE_CHECKING:
    from dcae_cache.encode.pipeline import Summary
    from dcae_cache.encode.preview import Preview

_MOST_KINDS = 5  # of unsupported files named in a summary
_IDLE = 0.1  # of the time: beyond it the input side limits a run


def bottleneck(summary: Summary) -> str:
    """Which side the run waited for, and what to change."""
    idle = f"{summary.device} stood idle {summary.idle_share:.0%} of the time between batches"
    if summary.idle_share <= _IDLE:
        return f"encoder-bound: {idle}"
    if summary.device == "cpu":
        return f"decode-bound: {idle}; decoding and encoding share its cores"
    return f"decode-bound: {idle}; raise --workers, or give each process more cores"


def show_summary(summary: Summary) -> None:
    """For a person, on stderr."""
    if summary.device is None:
        say(f"Nothing to encode: {summary.out} is up to date.")
    else:
        what = "images" if summary.num_images is None else "latents"
        say(
            f"Encoded {summary.encoded} {what} in {summary.seconds:.1f} s ({summary.images_per_second:.1f} {what}/s) "
            f"on {summary.device}{_crew(summary)}; {bottleneck(summary)}."
        )
    if summary.left_out:
        say(f"Left out {counted(summary.left_out, 'size')} that images are too small for (--max-upscale).")
    if summary.copied:
        say(f"{summary.copied} latents were copied: their images are the same as before.")
    if summary.vanished:
        fate = "their latents were dropped" if summary.pruned else "their latents are kept (--prune drops them)"
        say(f"{summary.vanished} planned samples are no longer in the source; {fate}.")
    if summary.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary.skipped.items())
        say(f"Skipped {sum(summary.skipped.values())}: {reasons}. See {summary.out}/skipped.jsonl.")
        for detail, count in _unsupported(Path(summary.out) / "skipped.jsonl").most_common(_MOST_KINDS):
            say(f"  unsupported {count}: {detail}.")
    if summary.refreshed:
        say(f"{counted(summary.refreshed, 'row')} had another caption, label or attributes: taken up.")
    for line in ledger_lines(Ledger.from_json(summary.ledger)):
        say(line)
    if not summary.complete and not summary.indexed:
        say("Other jobs' parts are still missing: the last job writes the index, or dcae-cache info --finalize.")
    say(
        f"{summary.out} holds {counted(summary.num_samples, 'latent')}{_of_images(summary)} in "
        f"{counted(summary.num_parts, 'part')}, {human_bytes(summary.num_bytes)}."
    )


def _of_images(summary: Summary) -> str:
    if summary.num_images is None:
        return ""
    skipped = f", {sum(summary.skipped.values())} of them skipped" if summary.skipped else ""
    return f" of {counted(summary.num_images, 'image')}{skipped}"


def _unsupported(file: Path) -> Counter[str]:
    """Why images are of a kind that is not read, in a sentence each -> how many."""
    if not file.exists():
        return Counter()
    with file.open() as lines:
        rows = (json.loads(line) for line in lines)
        return Counter(row["detail"] for row in rows if row["reason"] == "unsupported")


def _crew(summary: Summary) -> str:
    return f" in {summary.num_processes} processes" if summary.num_processes > 1 else ""


def _time_line(found: Mapping[str, Any]) -> str:
    """How long it would take, and how that is known."""
    if found["seconds"] is None:
        return f"time {found['how']}"
    return f"about {human_seconds(found['seconds'])} ({found['how']})"


def show_plan(preview: Preview) -> None:
    """For a person, on stdout."""
    for name, value in preview.recipe.items():
        show(f"{name}: {value}")
    show()
    show_table(
        ("bucket", "images", "batches"),
        [(bucket, count, preview.batches[bucket]) for bucket, count in preview.buckets.items()],
    )
    show()
    ledger = Ledger.from_json(preview.ledger)
    for line in ledger_lines(ledger):
        show(line)
    if preview.left_out:
        show(f"would be left out, images too small for them: {counted(preview.left_out, 'size')}")
    for reason, count in preview.skipped.items():
        show(f"would be skipped, {reason}: {count}")
    for detail, count in list(preview.unsupported.items())[:_MOST_KINDS]:
        show(f"  unsupported {count}: {detail}")
    if preview.buckets:
        most = f", one of them {preview.enlarged_most:.1f} times" if preview.enlarged else ""
        show(
            f"cropped away: {preview.cropped_mean:.1%} of an image's area on average, at most "
            f"{preview.cropped_p90:.1%} of nine in ten; enlarged: {preview.enlarged} images{most}"
        )
    show(_time_line(preview.estimate))
    usable = preview.num_samples - sum(preview.skipped.values())
    latents = sum(preview.buckets.values())
    stored = f"{latents} latents of {usable}" if has_views(preview.recipe) else str(usable)
    show(
        f"{stored} of {preview.num_samples} images in {preview.num_parts} parts; "
        f"{human_bytes(preview.num_bytes)} of latents. Nothing was written."
    )
