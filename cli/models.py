"""``dcae-cache models``: the autoencoders that have a name."""

from __future__ import annotations

from dataclasses import dataclass

from .options import AsJson
from .output import show_json, show_table


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    long_name: str
    f: int | None
    c: int | None
    scaling_factor: float | None
    source: str
    notes: str


def models(as_json: AsJson = False) -> None:
    """List the models that have a name. Any hub repo or folder with a DC-AE in it works too."""
    from dcae_cache.models.zoo import entries

    lines = [
        _Line(
            entry.name,
            entry.long_name,
            entry.spec.spatial_compression_ratio if entry.spec else None,
            entry.spec.latent_channels if entry.spec else None,
            entry.scaling_factor,
            "shipped" if entry.folder else entry.efficientvit_repos[0],
            entry.notes,
        )
        for entry in entries()
    ]
    if as_json:
        columns = _Line.__slots__
        show_json({"models": [{column: getattr(line, column) for column in columns} for line in lines]})
        return
    rows = [(line.name, line.f, line.c, line.scaling_factor or "-", line.source, line.notes) for line in lines]
    show_table(("name", "f", "c", "scaling factor", "from", "notes"), rows)
