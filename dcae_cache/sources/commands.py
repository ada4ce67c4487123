"""What a shell command writes, read as a file. That the command failed is told apart from the end of its output.

Knows nothing of tars, nor of whether a command may be run.
"""

from __future__ import annotations

import subprocess

from ..errors import SourceError

PIPE = "pipe:"


class CommandOutput:
    """The standard output of a command that is run now."""

    def __init__(self, command: str) -> None:
        self._command, self._position = command, 0
        self._process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE)

    def read(self, count: int = -1) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        self._position += len(data)
        if len(data) < count and self._process.wait():
            raise SourceError(
                f"{PIPE}{self._command} failed with exit status {self._process.returncode} after {self._position} "
                "bytes. Run the command by hand to see why."
            )
        return data

    def tell(self) -> int:
        return self._position

    def __enter__(self) -> CommandOutput:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.terminate()  # it may have more to say than was wanted
        self._process.wait()
