"""Every benchmark in turn, each in a process of its own: what each prints, then all targets together.

What can't be measured here is listed with the reason: a benchmark says so itself, or can't be imported. The tables are
those of docs/performance.md. Takes an hour or more; quiet machines give better figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .report import not_measured, read_back, show_table

_LARGE = ["--samples", "2000000", "--cells", "8", "--readers", "ours", "limit", "--warm-up", "20", "--rows", "0"]
_RUNS: dict[str, list[list[str]]] = {  # with which options, where once without any isn't all
    "encode": [[], ["--variants", "ours", "--links", "10", "--repeats", "1"]],
    "reader": [["--warm-up", "10"], _LARGE],  # six readers of so much at a time would not stay in the page cache
    "simulation": [[], ["--samples", "10000000", "--part-size", "1024", "--plan-only"]],
}


def main(args: list[str]) -> None:
    """Run them, and print and write what came out."""
    from .__main__ import BENCHMARKS

    names = [name for name in BENCHMARKS if name != "all"]
    options = _parse(args, names)
    results: dict[str, Any] = {}
    for name in names:
        if name not in options.only:
            continue
        print(f"\n## {name}: {BENCHMARKS[name]}\n", flush=True)
        found = [_run(name, more, options) for more in _RUNS.get(name, [[]])]
        results[name] = {"about": BENCHMARKS[name], "runs": found}
        if options.json:  # whole at any time: it takes long, and may be stopped
            about = {"machine": _machine(), "benchmarks": results}
            options.json.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lost = _show(results)
    if lost:
        sys.exit(f"{len(lost)} failed: {', '.join(lost)}")


def _parse(args: list[str], names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench all", description=__doc__)
    parser.add_argument(
        "--photos", type=Path, help="a folder of images, for those that take one; made ones unless given"
    )
    parser.add_argument("--peers", help="interpreter that has litdata and streaming, for the reader's peers")
    parser.add_argument(
        "--data", help="where the reader's samples are kept, some 45 GB; a temporary folder unless given"
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    options = parser.parse_args(args)
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no such folder")
    return options


def _run(name: str, more: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """What a benchmark printed, as it is and taken apart; its output is shown as it comes."""
    try:
        module = import_module(f"scripts.benchmarks.{name}")
    except ImportError as error:
        not_measured(name, f"it can't be imported here ({error})")
        return {"not_measured": [f"{name}: it can't be imported here ({error})"], "tables": [], "targets": []}
    given = {"--photos": options.photos, "--peers": options.peers, "--data": options.data}
    taken = [word for flag, value in given.items() if value and _takes(module, flag) for word in (flag, str(value))]
    command = [sys.executable, "-m", "scripts.benchmarks", name, *taken, *more]
    started, lines = time.perf_counter(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    seconds = round(time.perf_counter() - started, 1)
    output = "".join(lines)
    return {
        "options": [*taken, *more],
        "exit_code": process.returncode,
        "seconds": seconds,
        **read_back(output),
        "output": output,
    }


def _takes(module: Any, flag: str) -> bool:
    """Whether a benchmark has that option: its parser is built in its source."""
    return f'"{flag}"' in Path(module.__file__).read_text(encoding="utf-8")


def _show(results: dict[str, Any]) -> list[str]:
    """Print all targets, and what was not measured; the benchmarks that failed."""
    print("\n## All targets")
    lines, lost = [], []
    for name, result in results.items():
        for run in result["runs"]:
            for target in run["targets"]:
                wanted = f"{target['relation']} {target['wanted']:g}"
                lines.append((name, target["name"], target["found"], wanted, "met" if target["met"] else "**missed**"))
            if run.get("exit_code"):
                lost.append(name)
    show_table(("benchmark", "target", "found", "wanted", ""), lines)
    for name, result in results.items():
        for missing in (item for run in result["runs"] for item in run["not_measured"]):
            print(f"not measured, {name}: {missing}")
    for name in lost:
        print(f"failed: {name}")
    return lost


def _machine() -> dict[str, Any]:
    import torch

    return {
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
