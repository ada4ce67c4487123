"""`dcae-cache` as a user runs it: a process of its own, warnings as errors, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# The recipe of helpers.images.tiny_config as a user types it: caches made either way are the same bytes.
TINY = [
    "--model",
    "f32c32-tiny",
    "--resolution",
    "128",
    "--dtype",
    "fp32",
    "--max-aspect",
    "2",
    "--bucket-step",
    "64",
    "--device",
    "cpu",
]
COMMAND = (sys.executable, "-W", "error", "-m", "dcae_cache.cli.main")


def run(*arguments: object, expect: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which must be the exit code expected."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done
