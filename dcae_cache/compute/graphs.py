"""Work on a CUDA device that is recorded when it comes up again, and from then on started by one call.

Starting some 300 kernels one by one takes 8 ms of a thread that holds the interpreter's lock, and several times that
beside decoding threads: more than a device needs for a small batch. Knows nothing of what the work is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .devices import first_line
from .memory import is_out_of_memory, release_cached

Results = tuple[Tensor, Tensor | None]
Work = Callable[[Tensor], Results]

MOST_PIXELS = 8 * 512 * 512  # of a batch: larger ones keep a device busy for longer than it takes to start them
MOST_GRAPHS = 32  # of one encoder; their memory is one pool, as large as the largest needs


class Recording(Protocol):
    """Work that was recorded for one shape."""

    def replay(self, given: Tensor) -> Results:
        """Do the work on that tensor. The results hold until the next replay of any recording: whoever needs them
        longer queues a copy first."""


Recorder = Callable[[Work, Tensor], Recording]


class Graphs:
    """Runs one kind of work; for each shape that comes a second time it is recorded, at most MOST_GRAPHS times.

    ``record`` makes a recording. One is used only if it gives the same bytes as the work itself; where recording fails
    or memory runs short the work itself is run, as ever. ``tell`` hears of a recording that failed, once. For one
    thread.
    """

    def __init__(self, device: torch.device, record: Recorder, tell: Callable[[str], None]) -> None:
        self._device, self._record, self._tell = device, record, tell
        self._seen: Counter[torch.Size] = Counter()
        self._recordings: dict[torch.Size, Recording] = {}
        self._is_off = False

    def run(self, work: Work, given: Tensor, *, may_record: bool = True) -> Results:
        """``work(given)`` for [N, C, H, W], replayed where that shape has been recorded.

        ``may_record``: False for other work than the one that is recorded. It, and work that is too large, gets the
        recordings' memory where there is no other left.
        """
        if not may_record or given[:, 0].numel() > MOST_PIXELS:
            return self._run(work, given)
        recording = self._recordings.get(given.shape)
        if recording is not None:
            return recording.replay(given)
        results = self._run(work, given)
        self._seen[given.shape] += 1
        if self._seen[given.shape] == 2 and len(self._recordings) < MOST_GRAPHS and not self._is_off:
            self._try_recording(work, given, results)
        return results

    def clear(self) -> None:
        """Give up all recordings and their memory, for good."""
        self._is_off = True
        self._recordings.clear()
        release_cached(self._device)

    def _run(self, work: Work, given: Tensor) -> Results:
        try:
            return work(given)
        except Exception as error:
            if not (self._recordings and is_out_of_memory(error)):
                raise
        self.clear()  # out here, where nothing refers to the error and the tensors of the work that failed
        return work(given)

    def _try_recording(self, work: Work, given: Tensor, expected: Results) -> None:
        fault = None
        try:
            recording = self._record(work, given)
            if _same_bytes(recording.replay(given), expected):
                self._recordings[given.shape] = recording
            else:
                fault = "a recording gave other numbers"
        except RuntimeError as error:
            fault = first_line(error)
            if is_out_of_memory(error):
                self._is_off = True
        if fault is not None:
            told, self._is_off = self._is_off, True
            release_cached(self._device)
            if not told:
                self._tell(f"CUDA graphs are not used ({fault}): small batches take longer to start.")


def graphs_of(device: torch.device, tell: Callable[[str], None]) -> Graphs | None:
    """The graphs of that device; None where there is no such thing."""
    if device.type != "cuda":
        return None
    pool: list[object] = []

    def record(work: Work, given: Tensor) -> Recording:
        pool[:] = pool or [torch.cuda.graph_pool_handle()]
        return _CudaRecording(device, pool[0], work, given)

    return Graphs(device, record, tell)


class _CudaRecording:
    """A CUDA graph. All of an encoder share one pool of memory: nothing of one is needed when the next is replayed."""

    def __init__(self, device: torch.device, pool: object, work: Work, given: Tensor) -> None:
        self._given = given.clone()
        self._graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(device),
            # The other threads go on meanwhile, and may ask CUDA for pinned memory.
            torch.cuda.graph(
                self._graph,
                pool=pool,  # type: ignore[arg-type]  # a handle, which has no type of its own
                stream=torch.cuda.Stream(device),  # type: ignore[no-untyped-call]  # torch's is untyped
                capture_error_mode="thread_local",
            ),
        ):
            self._results = work(self._given)

    def replay(self, given: Tensor) -> Results:
        self._given.copy_(given)
        self._graph.replay()
        return self._results


def _same_bytes(found: Results, expected: Results) -> bool:
    """NaN is the same as NaN here."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    whole = {2: torch.int16, 4: torch.int32}
    return all(torch.equal(a.view(whole[a.element_size()]), b.view(whole[b.element_size()])) for a, b in pairs)
