"""The numbers that ``dcae-cache`` ends with. README.md lists them; scripts rely on them."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2  # an argument or setting that can't be honoured
EXIT_FOUND = 3  # verify found a problem
EXIT_INTERRUPTED = 130  # resumable; what a shell reports for Ctrl-C
