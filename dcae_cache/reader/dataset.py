"""A cache as a dataset: any samples' latents and columns, gathered out of mapped memory into whole batches.

Needs the cache alone: no source, no model, no image library. Samples are numbered part by part, in a part bucket by
bucket (sorted by height, then width), in a bucket by row; the numbering follows from the index and never changes for
parts that stay as they are.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..cache.rows_file import RowsFile, check_columns
from ..compute.devices import TORCH_DTYPES
from ..errors import CacheError, UsageError
from .batch import Draws, LatentBatch, Sample, as_array
from .ranges import Layout, Ranges
from .rows import open_rows
from .shard_maps import ShardMaps
from .store import PartStore, open_store
from .transform import Transform

DEFAULT_COLUMNS = ("key", "caption", "label", "height", "width", "crop_top", "crop_left")


class LatentDataset(Dataset[Sample]):
    """The stored samples of a cache, as dictionaries: "latents" [c, h, w] and the columns asked for (missing text is
    "", a missing number -1; ``attributes.NAME`` is a value of the attributes, None where missing).

    Latents are as stored: scaled, in the stored dtype. ``raw=True`` gives raw ones (fp32, divided by the scaling
    factor). ``flipped=True`` gives the latents of the mirrored images, for caches made with ``flip``. ``cache`` is a
    folder, or a store of the same files. A loader gets whole batches, collated: latents [N, c, h, w], numbers as
    int64 tensors [N], everything else as lists. ``allow_incomplete=True`` reads what there is of a cache that lacks
    planned parts. Raises CacheError when the folder is no finished cache or lacks what is asked for, and UsageError
    for an unknown column.
    """

    def __init__(
        self,
        cache: str | Path | PartStore,
        *,
        columns: Sequence[str] = DEFAULT_COLUMNS,
        raw: bool = False,
        flipped: bool = False,
        allow_incomplete: bool = False,
    ) -> None:
        self.store = open_store(cache) if isinstance(cache, str | Path) else cache
        self.cache = Path(self.store.root)
        self.index = self.store.index()
        self.columns = tuple(columns)
        self.raw = raw
        self.flipped = flipped
        check_columns(self.columns)
        if not (self.index["complete"] or allow_incomplete):
            raise CacheError(
                f"{self.cache} is unfinished: parts that were planned are missing. Run the same encode command again "
                "to finish it (of a job array: the jobs that are missing), or read what there is with "
                "`allow_incomplete`=True."
            )
        if flipped and not self.index["recipe"]["flip"]:
            raise CacheError(f"{self.cache} holds no latents of mirrored images; they are made by encode --flip.")
        latent = self.index["latent"]
        self.scaling_factor: float = latent["scaling_factor"]
        self.spatial_compression_ratio: int = latent["spatial_compression_ratio"]
        self.latent_channels: int = latent["channels"]
        self.dtype: torch.dtype = TORCH_DTYPES[latent["dtype"]]
        self.layout = Layout.of(self.index["parts"])
        self.transforms: tuple[Transform, ...] = ()
        self._size = self.layout.size
        self._buckets = self.layout.heights << 32 | self.layout.widths  # of each run, as one number
        self._rows: RowsFile | None = None
        self._shards: ShardMaps | None = None

    def with_transforms(self, *transforms: Transform) -> LatentDataset:
        """The same dataset, whose batches go through these pieces, in order, after those it has already."""
        changed = copy.copy(self)
        changed.transforms = (*self.transforms, *transforms)
        for piece in transforms:
            check_columns(piece.columns)
            piece.check(changed)
        return changed

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: int) -> Sample:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> LatentBatch:
        """The samples of one bucket as one batch; what loaders call. Raises UsageError for samples of several."""
        draws = Draws(self._checked(numbers), asked=numbers)
        batch = self._read(draws)
        for piece in self.transforms:
            batch = piece(batch, draws)
        return LatentBatch(batch, len(draws))

    @property
    def far_away(self) -> bool:
        """Whether it pays to call ``prefetch``."""
        return self.store.far_away

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Tell where these samples come from that they are next; a cache far away fetches their parts meanwhile.

        For the process that knows the order, which needn't be the one that reads. Returns at once.
        """
        runs = (
            np.searchsorted(self.layout.starts, np.asarray(numbers, np.int64) % max(self._size, 1), side="right") - 1
        )
        parts = self.layout.parts[runs].tolist()
        self.store.prefetch([self.layout.names[part] for part in dict.fromkeys(parts)])

    def describe(self, number: int) -> dict[str, Any]:
        """The columns of a sample; its latents are not read."""
        self.layout.run_of(number)
        return dict(LatentBatch(self._described(np.array([number % self._size]), self.columns), 1)[0])

    def latents(self, number: int) -> Tensor:
        """One sample's latents [c, h, w] as stored: a view of the file, not to be written to."""
        run = self.layout.run_of(number)
        return self.shards.tensor(run, flipped=self.flipped)[number % self._size - int(self.layout.starts[run])]

    def stack(self, numbers: Sequence[int] | NDArray[np.int64], *, flipped: NDArray[np.bool_] | None = None) -> Tensor:
        """The latents of samples of one bucket [N, c, h, w], as stored. ``flipped``: which are to be mirrored ones;
        without it, as the dataset is. Raises IndexError for a number that is none, UsageError for several buckets."""
        return self._stacked(self._checked(numbers), flipped)

    def _checked(self, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers as an array [N], N > 0, of 0 to the last sample; -1 is the last one, too."""
        places = as_array(numbers)
        if not len(places):
            raise UsageError("a batch needs at least one sample.")
        if places.view(np.uint64).max() >= self._size:  # or negative
            outside = places[(places < -self._size) | (places >= self._size)]
            if len(outside):
                raise IndexError(f"sample {outside[0]} of {self._size}")
            places = places % self._size
        return places

    def _stacked(self, places: NDArray[np.int64], flipped: NDArray[np.bool_] | None) -> Tensor:
        """The same of numbers that are checked."""
        runs = np.searchsorted(self.layout.starts, places, side="right") - 1
        buckets = self._buckets.take(runs)
        if (buckets != buckets[0]).any():
            found = sorted({self.bucket_of(number) for number in places.tolist()})
            raise UsageError(
                f"a batch has samples of the buckets {', '.join(f'{h}x{w}' for h, w in found)}; it must be of one. "
                "Use BucketBatchSampler, as DataLoader's `batch_sampler`."
            )
        return self.shards.gather(runs, places, self.flipped if flipped is None else flipped)

    def part_of(self, number: int) -> str:
        """The name of the part that holds a sample."""
        return self.layout.names[int(self.layout.parts[self.layout.run_of(number)])]

    def bucket_of(self, number: int) -> tuple[int, int]:
        """(height, width) in pixels of the bucket that a sample is in."""
        run = self.layout.run_of(number)
        return int(self.layout.heights[run]), int(self.layout.widths[run])

    def numbers_of(self, keys: Collection[str]) -> dict[str, int]:
        """Key -> number of those of the keys that are stored."""
        stored = self.rows.table(["key"])["key"]
        wanted = pa.array(list(keys), stored.type)
        found = np.flatnonzero(pc.is_in(stored, value_set=wanted).to_numpy())
        return dict(zip(self.rows.take(["key"], found)["key"], found.tolist(), strict=True))

    def neighbours(self, number: int) -> tuple[range, Tensor]:
        """The samples of the same part and bucket, and their latents [N, c, h, w] as stored: a view of the file."""
        run = self.layout.run_of(number)
        first = int(self.layout.starts[run])
        return range(first, first + int(self.layout.counts[run])), self.shards.tensor(run, flipped=self.flipped)

    def buckets(self) -> dict[tuple[int, int], Ranges]:
        """(height, width) in pixels -> the sample numbers in that bucket, as ranges."""
        return self.layout.buckets()

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns of all samples, in the order of their numbers. Text is mapped, not copied."""
        return self.rows.table(columns)

    def identity(self) -> dict[str, Any]:
        """What tells this cache from others, for states: equal only where every number stands for the same latent."""
        digest = hashlib.sha256()
        for part in self.index["parts"]:
            digest.update(f"{part['name']} {part['sha256']} {sorted(part['buckets'].items())}\n".encode())
        return {"recipe": self.index["fingerprint"], "num_samples": len(self), "parts": digest.hexdigest()}

    @property
    def rows(self) -> RowsFile:
        """The columns of all samples. Opened, and made where need be, when first asked for."""
        if self._rows is None:
            self._rows = open_rows(self.store, self.index)
        return self._rows

    @property
    def shards(self) -> ShardMaps:
        """The mapped latents."""
        if self._shards is None:
            self._shards = ShardMaps(self.store, self.layout, self.spatial_compression_ratio)
        return self._shards

    def __getstate__(self) -> dict[str, Any]:
        """For loader processes: everything but what is mapped."""
        return {**self.__dict__, "_rows": None, "_shards": None}

    def _read(self, draws: Draws) -> dict[str, Any]:
        columns, flipped = self.columns, None
        if self.transforms:
            columns = tuple(dict.fromkeys((*columns, *(name for piece in self.transforms for name in piece.columns))))
            flipped = next((each for piece in self.transforms if (each := piece.mirrored(draws)) is not None), None)
        latents = self._stacked(draws.numbers, flipped)
        if self.raw:
            latents = latents.to(torch.float32) / self.scaling_factor
        return {"latents": latents} | self._described(draws.numbers, columns)

    def _described(self, numbers: NDArray[np.int64], columns: Sequence[str]) -> dict[str, Any]:
        if not columns:
            return {}
        values = self.rows.take(columns, numbers)
        return {name: each if isinstance(each, list) else _as_tensor(each) for name, each in values.items()}


def _as_tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64, copy=False))
