"""The trace of one process's share of a run, for who wants to see what waits for what (`profile`).

Lanes: the reader and loader, each decoder, the encoder's host side, each stream of a CPU that encodes, the writer, and
the device by its own clock. Knows nothing of how any of them works.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ..compute.idle import IdleClock
from ..compute.transfers import Mark, transfers_of
from ..errors import CacheError, UsageError
from ..files import replace_atomically
from ..trace import NO_TRACE, Trace
from .distributed import ProcessRank


def file_of(profile: str, own: ProcessRank | None) -> Path:
    """Where this process writes: ``profile``, or of several processes each beside it, by its rank."""
    path = Path(profile).expanduser().absolute()
    if own is None or own.world_size == 1:
        return path
    return path.with_name(f"{path.stem}-rank{own.rank}{path.suffix}")


def refuse_unfit_file(profile: str) -> None:
    """Raise UsageError where nothing could be written, before anything is done."""
    path = Path(profile).expanduser()
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that doesn't exist"
        raise UsageError(f"`profile` {profile} {what}; expected a file to write the trace to, such as trace.json.")


@contextmanager
def profiled(profile: str | None, own: ProcessRank | None) -> Iterator[Trace]:
    """A trace that is written when the block is left, however that is; one that keeps nothing without ``profile``.

    Raises CacheError where it can't be written, unless something else went wrong before.
    """
    if profile is None:
        yield NO_TRACE
        return
    trace = Trace()
    trace.name_lane("encoder")
    try:
        yield trace
    except BaseException:
        with suppress(CacheError):
            _write(trace, file_of(profile, own), own)
        raise
    _write(trace, file_of(profile, own), own)


def trace_device(idle: IdleClock, device: torch.device, trace: Trace) -> None:
    """From now on have what the device does in the trace, by its own clock. A CPU's streams are threads, and have
    their own lanes."""
    if not trace.is_on:
        return
    origin = transfers_of(device).mark()
    origin.wait()
    at = time.perf_counter()

    def heard(begin: Mark, end: Mark, lane: object) -> None:
        start = at + begin.seconds_since(origin)
        place = _name_of_thread(lane) if device.type == "cpu" else str(device)
        trace.add("encode a batch", start, start + end.seconds_since(begin), place)

    idle.heard = heard


def _name_of_thread(ident: object) -> str:
    return next((thread.name for thread in threading.enumerate() if thread.ident == ident), str(ident))


def _write(trace: Trace, path: Path, own: ProcessRank | None) -> None:
    with replace_atomically(path) as file:
        file.write(trace.to_json("dcae-cache" if own is None else f"rank {own.rank}").encode())
