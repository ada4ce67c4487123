"""`dcae-cache` as a user runs it: a process of its own, warnings as errors, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = (sys.executable, "-W", "error", "-m", "dcae_cache.cli.main")


def run(*arguments: object, expect: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which must be the exit code expected."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done
