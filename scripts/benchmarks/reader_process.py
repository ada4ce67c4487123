"""The process of one reader in ``scripts/bench reader``: gives shuffled batches of one bucket when it is told to.

Reads lines "N" (that many batches) on stdin and answers each with one JSON line of what it took and holds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .reader_data import CHANNELS, Shape, npy_path

Batches = Iterator[dict[str, Any]]


def main(args: list[str]) -> None:
    """``NAME FOLDER SAMPLES CELLS PART_SIZE BATCH_SIZE``."""
    torch.set_num_threads(1)
    name, folder, numbers = args[0], Path(args[1]), [int(word) for word in args[2:]]
    started = time.perf_counter()
    batches = READERS[name](folder, Shape(*numbers[:3]), numbers[3])
    first = next(batches)
    print(json.dumps({"opening": time.perf_counter() - started, **_held()}), flush=True)
    assert name == "limit" or len(first["caption"]) == len(first["latents"])
    for line in sys.stdin:
        started, count = time.perf_counter(), 0
        for batch in islice(batches, int(line)):
            count += len(batch["latents"])
        print(json.dumps({"seconds": time.perf_counter() - started, "samples": count, **_held()}), flush=True)
    os._exit(0)  # some readers leave threads behind that nobody ends


def _held() -> dict[str, int]:
    """Descriptors, and MiB of memory of this process alone (anonymous) and of files, which processes share."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, files = (int(lines[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile"))
    return {"descriptors": len(os.listdir("/proc/self/fd")), "own_mib": own, "file_mib": files}


def _ours(folder: Path, shape: Shape, batch_size: int) -> Batches:
    from dcae_cache import BucketBatchSampler, LatentDataset, LatentLoader

    dataset = LatentDataset(folder)
    loader = LatentLoader(dataset, BucketBatchSampler(dataset, batch_size))
    while True:
        yield from loader


class _Files(Dataset[dict[str, Any]]):
    """What people write first: one file a sample, captions in memory."""

    def __init__(self, folder: Path, which: int) -> None:
        self.folder, self.which = folder, which
        self.captions = json.loads((folder / f"captions-{which}.json").read_text())

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, number: int) -> dict[str, Any]:
        latents = np.load(npy_path(self.folder, self.which, number))
        return {"latents": torch.from_numpy(latents), "caption": self.captions[number]}


class _SafetensorsFiles(Dataset[dict[str, Any]]):
    """As LightningDiT's ImgLatentDataset reads: the file of a sample is opened for each sample."""

    def __init__(self, folder: Path, which: int, part_size: int) -> None:
        self.files = sorted((folder / f"{which}").glob("*.safetensors"))
        self.part_size = part_size
        self.captions = json.loads((folder / f"captions-{which}.json").read_text())

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, number: int) -> dict[str, Any]:
        from safetensors import safe_open

        with safe_open(self.files[number // self.part_size], framework="pt", device="cpu") as file:
            row = number % self.part_size
            latents = file.get_slice("latents")[row : row + 1]
            label = file.get_slice("labels")[row : row + 1]
        return {"latents": latents.squeeze(0), "label": label.squeeze(0), "caption": self.captions[number]}


def _npy(folder: Path, shape: Shape, batch_size: int) -> Batches:
    return _in_turn([_forever(_loader(_Files(folder, which), batch_size)) for which in (0, 1)])


def _lightningdit(folder: Path, shape: Shape, batch_size: int) -> Batches:
    sets = [_SafetensorsFiles(folder, which, shape.part_size) for which in (0, 1)]
    return _in_turn([_forever(_loader(each, batch_size)) for each in sets])


def _loader(dataset: Dataset[dict[str, Any]], batch_size: int) -> DataLoader[dict[str, Any]]:
    return DataLoader(dataset, batch_size, shuffle=True)


def _litdata(folder: Path, shape: Shape, batch_size: int) -> Batches:
    from litdata import StreamingDataLoader, StreamingDataset

    sets = [StreamingDataset(str(folder / f"{which}"), shuffle=True) for which in (0, 1)]
    return _in_turn([_forever(StreamingDataLoader(each, batch_size=batch_size)) for each in sets])


def _streaming(folder: Path, shape: Shape, batch_size: int) -> Batches:
    from streaming import StreamingDataset

    sets = [StreamingDataset(local=str(folder / f"{n}"), shuffle=True, batch_size=batch_size) for n in (0, 1)]
    return _in_turn([_forever(DataLoader(each, batch_size)) for each in sets])


def _limit(folder: Path, shape: Shape, batch_size: int) -> Batches:
    """Rows of a mapped file, gathered by random numbers: no captions, no order to keep, no parts."""
    mapped = []
    for which, bucket in enumerate(shape.buckets):
        path = folder / f"{which}.bin"
        count = path.stat().st_size // 2
        mapped.append(torch.from_file(str(path), size=count, dtype=torch.bfloat16).view(-1, CHANNELS, *bucket))
    random = np.random.default_rng(0)
    while True:
        for latents in mapped:
            yield {"latents": latents[torch.from_numpy(random.integers(0, len(latents), batch_size))]}


def _forever(loader: Any) -> Batches:
    while True:
        yield from loader


def _in_turn(streams: Sequence[Batches]) -> Batches:
    while True:
        for stream in streams:
            yield next(stream)


READERS: dict[str, Callable[[Path, Shape, int], Batches]] = {
    "ours": _ours,
    "npy": _npy,
    "lightningdit": _lightningdit,
    "litdata": _litdata,
    "streaming": _streaming,
    "limit": _limit,
}

if __name__ == "__main__":
    main(sys.argv[1:])
