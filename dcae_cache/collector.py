"""Gathers the latents of each part until the part is whole, and has whole parts written on a thread of its own.

Knows nothing of devices or images: batches come in encoded, parts go out committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor

from .encoder import EncodedBatch
from .loading import Batch, PartInProgress
from .plan import entries_digest
from .records import Bucket, Row
from .shards import PartContent, PartInfo, tensor_name

_Latents = dict[int, tuple[Tensor, Tensor | None] | None]  # slot -> latent and mirrored latent; None: not finite


class Collector:
    """Takes encoded batches and ends of parts in order. Leaving the ``with`` block waits for the last write.

    ``commit`` writes one part; it runs on the writing thread. ``count`` hears of every sample that is done, as
    (encoded, skipped), on the calling thread. ``infos`` holds what was committed.
    """

    def __init__(self, commit: Callable[[PartContent], PartInfo], count: Callable[[int, int], None]) -> None:
        self._commit, self._count = commit, count
        self._latents: dict[int, _Latents] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: deque[Future[PartInfo]] = deque()
        self.infos: list[PartInfo] = []

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._writing and error is None:
                self.infos.append(self._writing.popleft().result())
        finally:
            self._pool.shutdown(wait=True)

    def add(self, batch: Batch, encoded: EncodedBatch) -> None:
        """Keep a batch's latents until their part is whole."""
        slots = self._latents.setdefault(batch.part.part.number, {})
        for i, slot in enumerate(batch.slots):
            mirrored = None if encoded.mirrored is None else encoded.mirrored[i]
            slots[slot] = (encoded.latents[i], mirrored) if encoded.finite[i] else None
        num_finite = sum(encoded.finite)
        self._count(num_finite, len(batch.slots) - num_finite)

    def finish(self, progress: PartInProgress) -> None:
        """Have a part written whose batches have all been added. Raises what went wrong with an earlier part."""
        self._count(0, sum(row.status != "ok" for row in progress.rows))
        content = assemble(progress, self._latents.pop(progress.part.number, {}))
        while len(self._writing) >= 2:  # two parts in memory beside the one being filled, no more
            self.infos.append(self._writing.popleft().result())
        self._writing.append(self._pool.submit(self._commit, content))


def assemble(progress: PartInProgress, latents: _Latents) -> PartContent:
    """Stack each bucket's latents in source order and number the rows accordingly."""
    rows: list[Row] = []
    stacks: dict[Bucket, list[tuple[Tensor, Tensor | None]]] = {}
    for slot, row in enumerate(progress.rows):
        if row.status != "ok" or row.bucket is None:
            rows.append(row)
        elif (pair := latents[slot]) is None:
            detail = "the latent is NaN or Inf, in fp32 too"
            rows.append(replace(row, status="skipped", reason="not_finite", detail=detail))
        else:
            stack = stacks.setdefault(row.bucket, [])
            rows.append(replace(row, row=len(stack)))
            stack.append(pair)
    tensors: dict[str, Tensor] = {}
    for stack in stacks.values():
        height, width = stack[0][0].shape[-2:]
        tensors[tensor_name(height, width)] = torch.stack([plain for plain, _ in stack])
        mirrored = [flipped for _, flipped in stack if flipped is not None]
        if mirrored:
            tensors[tensor_name(height, width, flip=True)] = torch.stack(mirrored)
    return PartContent(
        name=progress.part.name, entries_sha256=entries_digest(progress.part), rows=rows, tensors=tensors
    )
