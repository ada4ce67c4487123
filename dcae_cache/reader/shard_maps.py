"""The mapped shards of a cache, and copies of any of their rows as one tensor. Knows nothing of tables or orders."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import RLock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cache.parts import tensor_name
from ..cache.safetensors_io import map_safetensors
from ..errors import CacheError
from .memory import Blocks
from .ranges import Layout
from .store import PartStore

_UNMAPPED = np.int64(-(2**62))  # far below any address, whatever is added to it


@dataclass(frozen=True, slots=True)
class _Kind:
    """The latents of one bucket: what each is like, and how they are copied."""

    shape: tuple[int, ...]  # c, h, w
    dtype: torch.dtype
    num_bytes: int
    blocks: Blocks


class ShardMaps:
    """Latents of a cache by run and number, as stored. A part is mapped when it is first read; of more than the store
    allows, the one mapped first is let go. Several threads may read at the same time."""

    def __init__(self, store: PartStore, layout: Layout, ratio: int) -> None:
        self._store, self._layout, self._ratio = store, layout, ratio
        self._max_mapped = max(store.max_mapped, 1)
        # Where parts are let go, none may be while another thread copies from it. Elsewhere nothing waits.
        evicts = len(layout.names) > self._max_mapped
        self._turn: AbstractContextManager[object] = RLock() if evicts else nullcontext()
        self._mapped: dict[int, dict[str, Tensor]] = {}
        self._num_runs = len(layout.starts)
        # Of each run, then of its mirror: where its latents would begin if they went back to those of sample 0.
        self._bases = np.full(2 * self._num_runs, _UNMAPPED)
        self._kinds: dict[tuple[int, int], _Kind] = {}  # by height and width of the bucket

    def tensor(self, run: int, *, flipped: bool = False) -> Tensor:
        """The latents of a run [N, c, h, w]: a view of the file. Raises CacheError where the shard lacks them."""
        layout = self._layout
        part, ratio = int(layout.parts[run]), self._ratio
        name = tensor_name(int(layout.heights[run]) // ratio, int(layout.widths[run]) // ratio, flip=flipped)
        with self._turn:
            tensor = self._tensors(part).get(name)
        if tensor is None or len(tensor) < layout.counts[run]:
            found = "no such tensor" if tensor is None else f"{len(tensor)} of them"
            raise CacheError(
                f"{self._store.root}: {layout.names[part]} should hold {layout.counts[run]} latents in {name}, there "
                f"is {found}. Check with: dcae-cache verify --integrity-only"
            )
        return tensor

    def gather(self, runs: NDArray[np.int64], numbers: NDArray[np.int64], flipped: NDArray[np.bool_] | bool) -> Tensor:
        """Samples by number, and the runs that they are in, of one bucket: copied into a tensor [N, c, h, w]."""
        with self._turn:
            return self._gather(runs + self._num_runs * flipped, numbers)

    def _gather(self, places: NDArray[np.int64], numbers: NDArray[np.int64]) -> Tensor:
        """The same by places in ``_bases``."""
        try:
            return self._copied(places, numbers)
        except (KeyError, IndexError):  # asking first whether all is mapped takes longer
            for place in np.unique(places[self._bases.take(places) == _UNMAPPED]).tolist():
                self._map(place)
        if (self._bases.take(places) == _UNMAPPED).any():  # the store allows fewer parts at a time
            halves = np.array_split(np.arange(len(places)), 2)
            return torch.cat([self._gather(places[half], numbers[half]) for half in halves])
        return self._copied(places, numbers)

    def _copied(self, places: NDArray[np.int64], numbers: NDArray[np.int64]) -> Tensor:
        """Raises KeyError or IndexError where one isn't mapped."""
        kind = self._kinds[self._bucket(int(places[0]) % self._num_runs)]
        copied = kind.blocks.copy(self._bases.take(places) + numbers * kind.num_bytes)
        return torch.from_numpy(copied).view(kind.dtype).view(len(places), *kind.shape)

    def _bucket(self, run: int) -> tuple[int, int]:
        return int(self._layout.heights[run]), int(self._layout.widths[run])

    def _map(self, place: int) -> None:
        flipped, run = divmod(place, self._num_runs)
        tensor = self.tensor(run, flipped=bool(flipped))
        num_bytes, bucket = tensor[0].nbytes, self._bucket(run)
        kind = self._kinds.get(bucket) or _Kind(tuple(tensor.shape[1:]), tensor.dtype, num_bytes, Blocks(num_bytes))
        # Another thread may have been faster; then it is its kind that knows the memory.
        self._kinds.setdefault(bucket, kind).blocks.add(tensor.data_ptr(), len(tensor))
        self._bases[place] = tensor.data_ptr() - int(self._layout.starts[run]) * num_bytes

    def _tensors(self, part: int) -> dict[str, Tensor]:
        found = self._mapped.get(part)
        if found is None:
            while len(self._mapped) >= self._max_mapped:
                self._let_go(next(iter(self._mapped)))
            mapped = map_safetensors(self._store.shard(self._layout.names[part]))
            # Another thread may have been faster; then its map stays, whose addresses may be noted already.
            found = self._mapped.setdefault(part, mapped)
        return found

    def _let_go(self, part: int) -> None:
        first, end = np.searchsorted(self._layout.parts, [part, part + 1])
        self._bases.reshape(2, -1)[:, first:end] = _UNMAPPED
        del self._mapped[part]
