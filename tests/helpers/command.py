"""`dcae-cache` as a user runs it: a process of its own, warnings as errors, and never a traceback.

The processes are forked off one that has imported everything, since starting Python and torch takes longer than most
commands. ``COMMAND`` is for the tests of the start itself and of what kills a process.
"""

from __future__ import annotations

import atexit
import os
import sys
from functools import cache
from pathlib import Path

from helpers.warm_command import Done, WarmCommand

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


def run(*arguments: object, expect: int = 0, cwd: Path | None = None, **environment: str) -> Done:
    """Run it to its end, which must be the exit code expected."""
    done = carry_out(*arguments, cwd=cwd, **environment)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


def carry_out(*arguments: object, cwd: Path | None = None, **environment: str) -> Done:
    """Run it to its end, whatever comes of it."""
    asked = dict(os.environ) | environment
    # Hub libraries read their settings when they are imported: one process to fork from for each set of them.
    hub = tuple(sorted((name, value) for name, value in asked.items() if name.startswith(("HF_", "HUGGING"))))
    server = _server(hub)
    server.start(*arguments, cwd=cwd, **asked)
    return server.finish()


@cache
def _server(hub: tuple[tuple[str, str], ...]) -> WarmCommand:
    server = WarmCommand(**dict(hub))
    atexit.register(server.__exit__)
    return server
