"""How large this process has been. Knows nothing of what is measured."""

from __future__ import annotations

import re
from pathlib import Path


def peak_mib() -> float:
    """The largest that this process was; ``getrusage`` counts what its parent was when it was started, too."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
