"""``dcae-cache`` in processes of their own that start at once: forked off one that has imported everything.

As a program it reads from stdin one JSON object per line, a command, where it runs and its environment, and writes the
number of the process that carries it out, then what came of it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Self

PREPARE = "DCAE_CACHE_TEST_PREPARE"  # Python code that a process carries out before the command

# What the commands load when they need it.
_LOADED_LATE = (
    *("dcae_cache.compare.comparison", "dcae_cache.verify.checks", "torchmetrics.functional.image"),
    *("dcae_cache.encode.pipeline", "dcae_cache.share.pull", "dcae_cache.share.push", "dcae_cache.cache.integrity"),
    *("huggingface_hub.hf_api", "huggingface_hub._snapshot_download", "pyarrow.dataset", "pandas", "pydantic"),
)


@dataclass
class Done:
    """What came of a command. ``returncode`` is negative for one that a signal ended. ``peak_mib``: the most memory
    that it held in RAM, with what it shares with the process it was forked from."""

    returncode: int
    stdout: str
    stderr: str
    peak_mib: int


class WarmCommand:
    """``with WarmCommand(environment) as command: command.run("push", ...)``. ``prepare``: code to carry out first."""

    def __init__(self, prepare: str = "", **environment: str) -> None:
        tests = Path(__file__).parents[1]
        settings = {PREPARE: prepare, "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=kept | settings | environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, *arguments: object, cwd: Path | None = None, **environment: str) -> int:
        """Start the command; returns the number of its process. ``finish`` must follow."""
        assert self._process.stdin is not None
        asked = {"arguments": list(map(str, arguments)), "cwd": str(cwd or Path.cwd()), "environment": environment}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def finish(self) -> Done:
        """Wait for the end of what was started."""
        return Done(**json.loads(self._line()))

    def run(self, *arguments: object, expect: int = 0) -> Done:
        """Run it to its end, which must be the exit code expected, without a traceback."""
        self.start(*arguments)
        done = self.finish()
        assert done.returncode == expect, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def _serve() -> None:
    for module in _LOADED_LATE:
        importlib.import_module(module)
    from dcae_cache.cli.main import main

    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = ["dcae-cache", *asked["arguments"]]
                os.environ.update(asked["environment"])
                os.chdir(asked["cwd"])
                _carry_out(main)
            print(pid, flush=True)
            _, status, used = os.wait4(pid, 0)
            out.seek(0)
            err.seek(0)
            done = Done(
                os.waitstatus_to_exitcode(status), out.read().decode(), err.read().decode(), used.ru_maxrss // 1024
            )
            print(json.dumps(asdict(done)), flush=True)


def _carry_out(main: Callable[[], NoReturn]) -> NoReturn:
    """End as the command does, without taking the interpreter apart, which is the parent's."""
    code = 1
    try:
        exec(os.environ[PREPARE], {})
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
