"""Runs that die: at the n-th write, flush to disk or rename, or at any moment. test_faults.py uses them; for hundreds
of deaths there is ``python tests/helpers/faults.py``."""

from __future__ import annotations

import argparse
import hashlib
import io
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["dcae_cache.encode.pipeline", "dcae_cache.export.run", "dcae_cache.sources.tars", "webdataset", "helpers.images"]
)
DIED = 77


def encode_in_process(source: str, out: Path, die_at: int | None = None) -> multiprocessing.process.BaseProcess:
    """Start a run in a process of its own. With ``die_at`` it ends without a word at that event."""
    process = _CONTEXT.Process(target=_run, args=(source, out, die_at))
    process.start()
    return process


def export_in_process(cache: Path, to: str, out: Path, die_at: int | None = None) -> tuple[int | None, int]:
    """Export in a process of its own, in shards of 4. With ``die_at`` it ends without a word at that event. Returns
    the exit code, and how many events there were."""
    receive, send = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_export, args=(cache, to, out, die_at, send))
    process.start()
    send.close()
    try:
        count: int = receive.recv()
    except EOFError:
        count = -1
    process.join()
    return process.exitcode, count


def _export(cache: Path, to: str, out: Path, die_at: int | None, report: Any) -> None:
    from dcae_cache.export.exporter import ExportOptions
    from dcae_cache.export.run import export_cache

    events = _Events(die_at)
    _inject(events)
    export_cache(cache, to, out, ExportOptions(shard_size=4))
    report.send(events.count)


def count_events(source: str, out: Path) -> int:
    """How many places there are to die in an undisturbed run."""
    receive, send = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_run, args=(source, out, None, send))
    process.start()
    total: int = receive.recv()
    process.join()
    assert process.exitcode == 0
    return total


def hashes(out: Path) -> dict[str, str]:
    """File name -> sha256 of everything a run leaves; temporary files would show. Not what a reader derives."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock") and ".derived" not in path.parts
    }


def _run(source: str, out: Path, die_at: int | None, report: Any = None) -> None:
    from dcae_cache.config import RunOptions
    from dcae_cache.encode.pipeline import encode_dataset
    from helpers.images import tiny_config

    events = _Events(die_at)
    _inject(events)
    options = RunOptions(device="cpu", workers=1, part_size=4, batch_size=2)
    encode_dataset(source, out, tiny_config(), options)
    if report is not None:
        report.send(events.count)


class _Events:
    def __init__(self, die_at: int | None) -> None:
        self._die_at, self.count = die_at, 0
        self._lock = threading.Lock()  # files may be flushed by several threads

    def happen(self, before: Callable[[], None] = lambda: None) -> None:
        """One more event. At the one to die at, ``before`` does half of it first."""
        with self._lock:
            if self.count == self._die_at:
                before()
                os._exit(DIED)
            self.count += 1


def _inject(events: _Events) -> None:
    """Every write to a temporary file, every flush to disk and every rename becomes an event, before and after."""
    from dcae_cache import files

    fsync, replace, open_path = os.fsync, os.replace, Path.open

    class Dying(io.BufferedWriter):
        def write(self, data: Any) -> int:
            def half() -> None:
                super(Dying, self).write(bytes(data)[: len(data) // 2])
                self.flush()

            events.happen(half)
            return super().write(data)

    def dying_open(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode == "wb" and path.name.endswith(".tmp"):
            return Dying(io.FileIO(path, "wb"))
        return open_path(path, mode, *rest, **options)

    def dying_fsync(descriptor: int) -> None:
        events.happen()
        fsync(descriptor)

    def dying_replace(old: Any, new: Any) -> None:
        events.happen()
        replace(old, new)
        events.happen()

    files.new_file = lambda path: Dying(io.FileIO(path, "wb"))  # type: ignore[assignment, arg-type, return-value]
    os.fsync, os.replace, Path.open = dying_fsync, dying_replace, dying_open  # type: ignore[assignment]


def main() -> None:
    """Kill runs over a folder and over tars at random moments; each is then finished and compared."""
    from helpers.images import make_folder
    from helpers.tars import make_tar, triples

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--every", action="store_true", help="first die at every write, flush and rename")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    root = Path(tempfile.mkdtemp())
    for number in range(4):
        make_tar(root / "tars" / f"{number}.tar", triples(10 * number, 5))
    sources = {"folder": str(make_folder(root / "photos", 20)), "tars": f"{root}/tars/{{0..3}}.tar"}
    for name, source in sources.items():
        encode_in_process(source, root / f"{name}-first").join()  # starts the server that later ones are forked from
        started = time.monotonic()
        whole = encode_in_process(source, root / f"{name}-whole")
        whole.join()
        assert whole.exitcode == 0
        took = time.monotonic() - started
        expected, killed, runs = hashes(root / f"{name}-whole"), 0, 0
        if options.every:
            _die_everywhere(name, source, root, expected)
        while killed < options.kills // len(sources):
            out = root / f"{name}-killed"
            while True:  # kill, and kill again, until a run is let finish
                process = encode_in_process(source, out)
                runs += 1
                process.join(draw.uniform(0, took) if draw.random() < 0.8 else None)
                if process.exitcode is not None:
                    break
                process.kill()
                process.join()
                killed += 1
            assert process.exitcode == 0
            if hashes(out) != expected:
                sys.exit(f"{name}: after {killed} kills the files differ; see {out}")
            shutil.rmtree(out)
        print(f"{name}: {killed} kills in {runs} runs, every cache the same files as the undisturbed one")
    shutil.rmtree(root)


def _die_everywhere(name: str, source: str, root: Path, expected: dict[str, str]) -> None:
    total = count_events(source, root / f"{name}-counted")
    for event in range(total):
        out = root / f"{name}-dead"
        for die_at, code in ((event, DIED), (None, 0)):
            process = encode_in_process(source, out, die_at)
            process.join()
            assert process.exitcode == code, (name, event, process.exitcode)
        if hashes(out) != expected:
            sys.exit(f"{name}: after a death at event {event} the files differ; see {out}")
        shutil.rmtree(out)
    print(f"{name}: died at each of {total} writes, flushes and renames, every cache the same afterwards")


if __name__ == "__main__":
    main()
