"""How models are fetched from the hub. Knows nothing of torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """Where models come from: ``cache_dir`` and ``token`` of the hub's client; ``offline`` forbids downloads."""

    cache_dir: str | None = None
    token: str | None = None
    offline: bool = False
