"""Everything a verification found, as JSON values: what ``verify --json`` prints and ``report.json`` holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ...text import without_infinity
from ..checks import VerifyReport

_OF_INDEX = ("creator", "source", "model", "latent", "recipe", "totals", "buckets", "skipped", "complete")


def values_of(result: VerifyReport) -> dict[str, Any]:
    """The figures of a report. Infinities (the PSNR of equal images) are null: JSON has none."""
    index = result.index or {}
    values = {
        "created": result.created.isoformat(timespec="seconds"),
        "cache": result.name,
        "ok": result.ok,
        "num_parts": result.num_parts,
        "num_samples": result.num_samples,
        "num_decoded": len(result.checked),
        "findings": [asdict(finding) for finding in result.findings],
        "warnings": result.warnings,
        "mean": asdict(result.mean) if result.mean else None,
        "largest_difference": max((sample.difference for sample in result.checked.values()), default=None),
        "samples": {
            key: {**asdict(sample.scores), "difference": sample.difference} for key, sample in result.checked.items()
        },
        "aggregates": {name: asdict(mean) for name, mean in result.aggregates.items()},
        "pictures": [{"key": picture.key, "rank": picture.rank} for picture in result.pictures],
        "side_by_side": None if result.side_by_side is None else asdict(result.side_by_side),
        "lpips_note": result.lpips_note,
        "statistics": {**index["statistics"], "overall_std": result.overall_std} if index else None,
        **{name: index.get(name) for name in _OF_INDEX},
    }
    plain: dict[str, Any] = without_infinity(values)
    return plain
