"""Read a cache while training: random access to latents by memory map, and batches of one bucket each.

Needs the cache alone: no source, no model, no image library. Samples are numbered part by part, in a part bucket by
bucket (sorted by height, then width), in a bucket by row; the numbering follows from the index and never changes for
parts that stay as they are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..cache.index import load_index
from ..cache.parts import read_rows, shard_path, tensor_name
from ..cache.safetensors_io import map_safetensors
from ..compute.devices import TORCH_DTYPES
from ..errors import CacheError, UsageError

DEFAULT_COLUMNS = ("key", "caption", "label", "height", "width", "crop_top", "crop_left")
_OPEN_SHARDS = 1024  # memory maps kept open
_OPEN_TABLES = 256


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive samples: one bucket of one part."""

    first: int
    part: str
    height: int  # of the bucket, in pixels
    width: int
    count: int


class LatentDataset(Dataset[dict[str, Any]]):
    """The stored samples of a cache, as dictionaries: "latents" [c, h, w] and the table columns asked for
    (missing text is "").

    Latents are as stored: scaled, in the stored dtype. ``raw=True`` gives raw ones (fp32, divided by the scaling
    factor). ``flipped=True`` gives the latents of the mirrored images, for caches made with ``flip``.
    Raises CacheError when the folder is no finished cache, or lacks what is asked for.
    """

    def __init__(
        self,
        cache: str | Path,
        *,
        columns: Sequence[str] = DEFAULT_COLUMNS,
        raw: bool = False,
        flipped: bool = False,
    ) -> None:
        self.cache = Path(cache)
        self.index = load_index(self.cache)
        self.columns = tuple(columns)
        self.raw = raw
        self.flipped = flipped
        if flipped and not self.index["recipe"]["flip"]:
            raise CacheError(f"{self.cache} holds no latents of mirrored images; they are made by encode --flip.")
        latent = self.index["latent"]
        self.scaling_factor: float = latent["scaling_factor"]
        self.spatial_compression_ratio: int = latent["spatial_compression_ratio"]
        self.latent_channels: int = latent["channels"]
        self.dtype: torch.dtype = TORCH_DTYPES[latent["dtype"]]
        self._runs = _runs(self.index)
        self._starts = [run.first for run in self._runs]
        self._caches()

    def __len__(self) -> int:
        return self._runs[-1].first + self._runs[-1].count if self._runs else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        run, row = self._locate(number)
        latents = self._tensor(run)[row].clone()
        if self.raw:
            latents = latents.to(torch.float32) / self.scaling_factor
        sample: dict[str, Any] = {"latents": latents}
        if self.columns:
            sample |= self._described(run, row)
        return sample

    def describe(self, number: int) -> dict[str, Any]:
        """What ``dataset[number]`` holds beside the latents, which are not read."""
        return self._described(*self._locate(number))

    def latents(self, number: int) -> Tensor:
        """One sample's latents [c, h, w] as stored: a view of the file, not to be written to."""
        run, row = self._locate(number)
        return self._tensor(run)[row]

    def stack(self, numbers: Sequence[int]) -> Tensor:
        """The latents of samples of one bucket [N, c, h, w], as stored."""
        return torch.stack([self.latents(number) for number in numbers])

    def part_of(self, number: int) -> str:
        """The name of the part that holds a sample."""
        return self._locate(number)[0].part

    def bucket_of(self, number: int) -> tuple[int, int]:
        """(height, width) in pixels of the bucket that a sample is in."""
        run, _ = self._locate(number)
        return run.height, run.width

    def numbers_of(self, keys: Collection[str]) -> dict[str, int]:
        """Key -> number of those of the keys that are stored. Needs the column "key"; reads tables until all are
        found."""
        wanted, found = set(keys), dict[str, int]()
        for run in self._runs:
            if len(found) == len(wanted):
                break
            for row, key in enumerate(self._columns_of(run.part)[run.height, run.width]["key"]):
                if key in wanted:
                    found[key] = run.first + row
        return found

    def neighbours(self, number: int) -> tuple[range, Tensor]:
        """The samples of the same part and bucket, and their latents [N, c, h, w] as stored: a view of the file."""
        run, _ = self._locate(number)
        return range(run.first, run.first + run.count), self._tensor(run)

    def buckets(self) -> dict[tuple[int, int], list[range]]:
        """(height, width) in pixels -> the sample numbers in that bucket, as ranges."""
        found: dict[tuple[int, int], list[range]] = {}
        for run in self._runs:
            found.setdefault((run.height, run.width), []).append(range(run.first, run.first + run.count))
        return found

    def __getstate__(self) -> dict[str, Any]:
        """For loader processes: everything but the open files."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_shard", "_columns_of")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._caches()

    def _caches(self) -> None:
        self._shard = lru_cache(_OPEN_SHARDS)(self._map_shard)
        self._columns_of = lru_cache(_OPEN_TABLES)(self._read_columns)

    def _locate(self, number: int) -> tuple[_Run, int]:
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        number %= len(self)
        run = self._runs[bisect_right(self._starts, number) - 1]
        return run, number - run.first

    def _tensor(self, run: _Run) -> Tensor:
        ratio = self.spatial_compression_ratio
        return self._shard(run.part)[tensor_name(run.height // ratio, run.width // ratio, flip=self.flipped)]

    def _described(self, run: _Run, row: int) -> dict[str, Any]:
        lines = self._columns_of(run.part)[run.height, run.width]
        return {name: lines[name][row] for name in self.columns}

    def _map_shard(self, part: str) -> dict[str, Tensor]:
        return map_safetensors(shard_path(self.cache, part))

    def _read_columns(self, part: str) -> dict[tuple[int, int], dict[str, list[Any]]]:
        table = read_rows(self.cache, part)
        table = table.filter(pc.equal(table["status"], "ok"))
        table = table.sort_by([("bucket_height", "ascending"), ("bucket_width", "ascending"), ("row", "ascending")])
        missing = [name for name in self.columns if name not in table.column_names]
        if missing:
            raise UsageError(f"No column {missing[0]!r} in {part}; there are {', '.join(table.column_names)}.")
        heights, widths = table["bucket_height"].to_numpy(), table["bucket_width"].to_numpy()
        columns = {name: _values(table[name]) for name in self.columns}
        lines: dict[tuple[int, int], dict[str, list[Any]]] = {}
        edges = np.flatnonzero(np.diff(heights, prepend=-1) | np.diff(widths, prepend=-1)).tolist()
        for start, stop in zip(edges, [*edges[1:], len(heights)], strict=True):
            bucket = int(heights[start]), int(widths[start])
            lines[bucket] = {name: values[start:stop] for name, values in columns.items()}
        return lines


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Missing text as "": loaders can't batch None."""
    values: list[Any] = (pc.fill_null(column, "") if pa.types.is_string(column.type) else column).to_pylist()
    return values


def _runs(index: dict[str, Any]) -> list[_Run]:
    runs, first = [], 0
    for part in index["parts"]:
        sizes = sorted((*map(int, bucket.split("x")), count) for bucket, count in part["buckets"].items())
        for height, width, count in sizes:
            runs.append(_Run(first, part["name"], height, width, count))
            first += count
    return runs
