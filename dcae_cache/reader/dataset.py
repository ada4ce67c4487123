"""Read a cache while training: random access to latents by memory map, and batches of one bucket each.

Needs the cache alone: no source, no model, no image library. Samples are numbered part by part, in a part bucket by
bucket (sorted by height, then width), in a bucket by row; the numbering follows from the index and never changes for
parts that stay as they are.
"""

from __future__ import annotations

import json
import math
import mmap
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..cache.index import load_index
from ..cache.parts import TORCH_DTYPES, read_rows, shard_path, tensor_name
from ..errors import CacheError, UsageError, one_line

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
    factor). ``flipped=True`` gives the latents of the mirrored images, for caches made with ``--flip``.
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


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of sample numbers, each of one bucket, for ``DataLoader(dataset, batch_sampler=...)``.

    The batches of an epoch follow from ``seed`` and the epoch alone, whatever the number of ranks; rank r of n takes
    every n-th. The last, smaller batch of each bucket is kept unless ``drop_last``; up to n - 1 batches at the end of
    an epoch are dropped so that all ranks take equally many steps. ``state_dict`` after any batch resumes behind it.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank_and_world_size: tuple[int, int] = (0, 1),
    ) -> None:
        self.rank, self.world_size = rank_and_world_size
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}.")
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank {self.rank} is not among {self.world_size} ranks (0 to {self.world_size - 1}).")
        self._buckets = [(bucket, runs) for bucket, runs in sorted(dataset.buckets().items())]
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.epoch = 0
        self._done = 0  # batches of this epoch that this rank has taken

    def __len__(self) -> int:
        """Batches of a whole epoch for this rank."""
        sizes = (sum(len(run) for run in runs) for _, runs in self._buckets)
        batches = sum(size // self.batch_size if self.drop_last else -(-size // self.batch_size) for size in sizes)
        return batches // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._epoch_batches()
        mine = batches[self.rank :: self.world_size][: len(self)]
        for batch in mine[self._done :]:
            self._done += 1
            yield batch.tolist()
        self.epoch += 1
        self._done = 0

    def set_epoch(self, epoch: int) -> None:
        """Start the given epoch from its first batch."""
        self.epoch, self._done = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where this rank is: the epoch, and the batches of it already taken."""
        return {"epoch": self.epoch, "done": self._done, "seed": self.seed, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the batch at which ``state_dict`` was taken. UsageError if seed or batch size differ."""
        for name in ("seed", "batch_size"):
            if state[name] != getattr(self, name):
                raise UsageError(
                    f"The state was saved with {name} {state[name]}; this sampler has {getattr(self, name)}."
                )
        self.epoch, self._done = state["epoch"], state["done"]

    def _epoch_batches(self) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        random = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for _, runs in self._buckets:
            numbers = np.concatenate([np.arange(run.start, run.stop) for run in runs])
            if self.shuffle:
                random.shuffle(numbers)
            stop = len(numbers) - len(numbers) % self.batch_size if self.drop_last else len(numbers)
            batches += [numbers[start : start + self.batch_size] for start in range(0, stop, self.batch_size)]
        if self.shuffle:
            order = random.permutation(len(batches))
            batches = [batches[i] for i in order]
        return batches


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Missing text as "": loaders can't batch None."""
    values: list[Any] = (pc.fill_null(column, "") if pa.types.is_string(column.type) else column).to_pylist()
    return values


def map_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard as views of a read-only memory map. Raises CacheError for a missing or damaged file."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:start])
        if not isinstance(entries, dict):
            raise ValueError("its header is no JSON object")
        entries.pop("__metadata__", None)
        return {name: _view(data, start, entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise CacheError(
            f"{path} can't be read as a shard: {one_line(error)}. Check with: dcae-cache verify --integrity-only"
        ) from error


def _view(data: mmap.mmap, start: int, entry: dict[str, Any]) -> Tensor:
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[entry["dtype"]]
    (first, last), shape = entry["data_offsets"], entry["shape"]
    count = (last - first) // dtype.itemsize
    if not 0 <= first <= last <= len(data) - start or math.prod(shape) != count or min(shape, default=0) < 0:
        raise ValueError(f"a tensor of shape {shape} can't lie at bytes {first} to {last}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start + first).view(shape)


def _runs(index: dict[str, Any]) -> list[_Run]:
    runs, first = [], 0
    for part in index["parts"]:
        sizes = sorted((*map(int, bucket.split("x")), count) for bucket, count in part["buckets"].items())
        for height, width, count in sizes:
            runs.append(_Run(first, part["name"], height, width, count))
            first += count
    return runs
