"""How many processor cores this process may use. Knows nothing of what they are used for."""

from __future__ import annotations

import os


def default_workers() -> int:
    """Decoding threads when the user names no number: one per core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
