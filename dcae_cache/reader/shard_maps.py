"""The mapped shards of a cache, and copies of any of their rows as one tensor. Knows nothing of tables or orders."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cache.parts import tensor_name
from ..cache.safetensors_io import map_safetensors
from ..errors import CacheError
from .ranges import Layout
from .store import PartStore


class ShardMaps:
    """Latents of a cache by run and row, as stored. A part is mapped when it is first read; of more than the store
    allows, the one mapped first is let go."""

    def __init__(self, store: PartStore, layout: Layout, ratio: int) -> None:
        self._store, self._layout, self._ratio = store, layout, ratio
        self._parts: list[int] = []
        self._mapped: dict[int, dict[str, Tensor]] = {}
        self._views: dict[int, dict[tuple[int, bool], NDArray[np.uint8]]] = {}  # part -> (run, flipped) -> its rows

    def tensor(self, run: int, *, flipped: bool = False) -> Tensor:
        """The latents of a run [N, c, h, w]: a view of the file. Raises CacheError where the shard lacks them."""
        layout = self._layout
        part, ratio = int(layout.parts[run]), self._ratio
        name = tensor_name(int(layout.heights[run]) // ratio, int(layout.widths[run]) // ratio, flip=flipped)
        tensor = self._tensors(part).get(name)
        if tensor is None or len(tensor) < layout.counts[run]:
            found = "no such tensor" if tensor is None else f"{len(tensor)} of them"
            raise CacheError(
                f"{self._store.root}: {layout.names[part]} should hold {layout.counts[run]} latents in {name}, there "
                f"is {found}. Check with: dcae-cache verify --integrity-only"
            )
        return tensor

    def gather(self, runs: NDArray[np.int64], rows: NDArray[np.int64], flipped: NDArray[np.bool_]) -> Tensor:
        """Rows of runs of one bucket, copied into a tensor [N, c, h, w]."""
        like = self.tensor(int(runs[0]), flipped=bool(flipped[0]))
        result = torch.empty((len(runs), *like.shape[1:]), dtype=like.dtype)
        target = _rows_as_bytes(result)
        if (runs == runs[0]).all() and (flipped == flipped[0]).all():
            np.take(_rows_as_bytes(like), rows, axis=0, out=target, mode="clip")  # other modes go through a buffer
            return result
        parts = self._layout.parts[runs].tolist()
        places = zip(parts, runs.tolist(), flipped.tolist(), rows.tolist(), strict=True)
        for i, (part, run, flip, row) in enumerate(places):
            try:
                target[i] = self._views[part][run, flip][row]
            except KeyError:
                target[i] = self._view(part, run, flip)[row]
        return result

    def _view(self, part: int, run: int, flipped: bool) -> NDArray[np.uint8]:
        view = _rows_as_bytes(self.tensor(run, flipped=flipped))
        self._views.setdefault(part, {})[run, flipped] = view
        return view

    def _tensors(self, part: int) -> dict[str, Tensor]:
        if part not in self._mapped:
            while len(self._mapped) >= max(self._store.max_mapped, 1):
                oldest = next(iter(self._mapped))
                del self._mapped[oldest]
                self._views.pop(oldest, None)
            self._mapped[part] = map_safetensors(self._store.shard(self._layout.names[part]))
        return self._mapped[part]


def _rows_as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """[N, ...] -> the same memory, [N, bytes]: numpy knows no bfloat16."""
    rows: NDArray[np.uint8] = tensor.view(len(tensor), -1).view(torch.uint8).numpy()
    return rows
