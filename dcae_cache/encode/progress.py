"""How far a run is, and what each of its processes has done. Knows nothing of sources, models or files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, in samples: ``done`` counts stored and skipped ones, those of earlier runs included.

    Where parts hold unknown numbers of samples ``total`` is an estimate from those done, and None before the first.
    """

    total: int | None
    done: int
    skipped: int


@dataclass(slots=True)
class Tally:
    """What one process has done in this run, or several have together."""

    encoded: int = 0  # latents stored, copied ones too
    copied: int = 0  # of these, latents that were stored already
    skipped: int = 0
    parts: int = 0
    waited_seconds: float = 0.0  # the encoder stood still for want of pixels
    failures: list[str] = field(default_factory=list)  # parts the source could not give whole

    @staticmethod
    def total(tallies: Iterable[Tally]) -> Tally:
        """All of them together."""
        listed = list(tallies)
        return Tally(
            sum(tally.encoded for tally in listed),
            sum(tally.copied for tally in listed),
            sum(tally.skipped for tally in listed),
            sum(tally.parts for tally in listed),
            sum(tally.waited_seconds for tally in listed),
            [failure for tally in listed for failure in tally.failures],
        )
