"""Gathers the latents of each part until the part is whole, and has whole parts written on a thread of its own.

Knows nothing of devices or images: batches come in encoded, parts go out committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ..cache.parts import PartContent, PartInfo, tensor_name
from ..cache.plan import entries_digest
from ..errors import CacheError
from ..files import write_failed
from ..ledger import Counts
from ..loading.batches import Batch, PartInProgress
from ..models.latent_encoder import MAX_MAGNITUDE, EncodedBatch
from ..models.latent_pieces import Fault
from .latent_buffer import LatentBuffer

_FAULTS: dict[Fault, str] = {
    "not_finite": "the latent is NaN or Inf, in fp32 too",
    "out_of_range": "the latent goes up to {magnitude:.4g}, in fp32 too; up to {most:g} is believed",
    "no_memory": "the device has no memory to encode an image of this size, even by itself",
}


class PartWriter:
    """Takes encoded batches and ends of parts in order. Leaving the ``with`` block waits for the last write.

    ``commit`` writes one part; it runs on the writing thread. ``count`` hears of every sample that is done, as
    (encoded, skipped), on the calling thread. ``folder`` is where latents may wait that don't fit in memory. ``infos``
    holds what was committed.
    """

    def __init__(
        self, commit: Callable[[PartContent], PartInfo], count: Callable[[int, int], None], folder: Path
    ) -> None:
        self._commit, self._count, self._folder = commit, count, folder
        self._buffers: dict[int, LatentBuffer] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: deque[Future[PartInfo]] = deque()
        self.infos: list[PartInfo] = []

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._writing and error is None:
                self.infos.append(self._writing.popleft().result())
        finally:
            self._pool.shutdown(wait=True)
            for buffer in self._buffers.values():
                buffer.close()

    def add(self, batch: Batch, encoded: EncodedBatch) -> None:
        """Keep a batch's latents until their part is whole, and number their rows.

        A bucket's batches come in source order, so the next row of its tensor is the next sample's.
        """
        buffer = self._buffer(batch.part)
        good = [i for i, fault in enumerate(encoded.faults) if fault is None]
        cells = encoded.latents.shape[-2:]
        first = 0
        try:
            if good:
                first = buffer.append(tensor_name(*cells), encoded.latents[good])
            if good and encoded.mirrored is not None:
                buffer.append(tensor_name(*cells, flip=True), encoded.mirrored[good])
        except OSError as error:
            raise CacheError(write_failed(self._folder, error)) from error
        rows = batch.part.rows
        for number, i in enumerate(good, first):
            rows[batch.slots[i]] = replace(rows[batch.slots[i]], row=number)
        for number, (slot, fault) in enumerate(zip(batch.slots, encoded.faults, strict=True)):
            if fault is not None:
                detail = _detail(encoded, number, fault)
                rows[slot] = replace(rows[slot], status="skipped", reason=fault, detail=detail)
        self._count(len(good), len(batch.slots) - len(good))

    def complete(self, progress: PartInProgress, met: Counts | None = None) -> None:
        """Have a part written whose batches have all been added. ``met``: what was met beside its samples. Raises what
        went wrong with an earlier part."""
        self._count(0, sum(row.status != "ok" and row.reason not in _FAULTS for row in progress.rows))
        buffer = self._buffer(progress)
        del self._buffers[progress.part.number]
        while len(self._writing) >= 2:  # two parts in memory beside the one being filled, no more
            self.infos.append(self._writing.popleft().result())
        self._writing.append(self._pool.submit(self._write, progress, buffer, met))

    def drop(self, progress: PartInProgress) -> None:
        """Forget a part that could not be read whole; its samples don't count as done."""
        self._count(-sum(row.row is not None for row in progress.rows), 0)
        self._buffer(progress).close()
        del self._buffers[progress.part.number]

    def _buffer(self, progress: PartInProgress) -> LatentBuffer:
        name = progress.part.name
        return self._buffers.setdefault(
            progress.part.number, LatentBuffer(lambda tensor: self._folder / f"{name}.{tensor}")
        )

    def _write(self, progress: PartInProgress, buffer: LatentBuffer, met: Counts | None) -> PartInfo:
        with buffer:
            return self._commit(
                PartContent(
                    name=progress.part.name,
                    entries_sha256=entries_digest(progress.part),
                    rows=progress.rows,
                    tensors=buffer.tensors(),
                    met=met,
                    left_out=progress.left_out,
                )
            )


def _detail(encoded: EncodedBatch, number: int, fault: Fault) -> str:
    if fault != "out_of_range":
        return _FAULTS[fault]
    return _FAULTS[fault].format(magnitude=encoded.magnitudes[number], most=MAX_MAGNITUDE)
