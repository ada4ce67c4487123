"""A source without files and an encoder without a network: what is left is the work of planning, queueing, decoding
small images, committing and finalising.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcae_cache.cache.recipe import recipe_of
from dcae_cache.compute.devices import auto_batch_size
from dcae_cache.compute.idle import IdleClock
from dcae_cache.config import EncodeConfig, RunOptions
from dcae_cache.encode.part_encoder import encode_parts
from dcae_cache.encode.progress import Counter, Listener
from dcae_cache.encode.reuse import find_reusable
from dcae_cache.encode.run import Run
from dcae_cache.encode.run_model import find_model, identify
from dcae_cache.ledger import SourceCounts
from dcae_cache.models.latent_encoder import EncodedBatch
from dcae_cache.records import Bucket, Entry, Origin, Part, Sample, SampleRef

SIDE = 32  # pixels: one latent cell
CONFIG = EncodeConfig(model="f32c32-tiny", bucket="native", resolution=SIDE, dtype="bf16")


class StubSource:
    """``count`` samples named by number, all the same small JPEG."""

    uri = "stub"
    entries_per_part: int | None = None

    def __init__(self, count: int) -> None:
        self.count = count
        pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "JPEG")
            self._data = file.getvalue()

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        return map(self._entry, range(self.count))

    def backwards(self) -> Iterator[Entry]:
        """The same entries, the last one first."""
        return map(self._entry, reversed(range(self.count)))

    def _entry(self, number: int) -> Entry:
        return Entry(f"{number:09d}", f"{number:09d}.jpg", len(self._data), 1)

    def read(self, part: Part) -> Iterator[SampleRef]:
        for entry in part.entries:
            yield SampleRef(entry.key, entry.location, partial(self._load, entry), partial(io.BytesIO, self._data))

    def found(self) -> dict[str, Any]:
        return {}

    def adopt(self, found: Mapping[str, Any]) -> None:
        pass

    def counts(self) -> SourceCounts:
        return SourceCounts()

    def _load(self, entry: Entry) -> Sample:
        return Sample(entry.key, self._data + entry.key.encode(), entry.location)  # a hash of its own


class StubEncoder:
    """Takes the place of LatentEncoder: each image takes ``seconds`` of waiting, its latent is zero."""

    streams = 1
    device = torch.device("cpu")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.notify: Any = None
        self.idle = IdleClock()
        self._busy_until = 0.0

    def __enter__(self) -> StubEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def batch_size(self, bucket: Bucket) -> int:
        return auto_batch_size(bucket, "cpu")

    def prepare(self, images: Sequence[Any]) -> Sequence[Any]:
        return images

    def launch(self, images: Sequence[Any]) -> StubBatch:
        """Like a device: one batch after the other."""
        self._busy_until = max(time.perf_counter(), self._busy_until) + self.seconds * len(images)
        return StubBatch(len(images), self._busy_until)


class StubBatch:
    def __init__(self, count: int, ready: float) -> None:
        self._count, self._ready = count, ready

    def result(self) -> EncodedBatch:
        time.sleep(max(0.0, self._ready - time.perf_counter()))
        return EncodedBatch(torch.zeros(self._count, 32, 1, 1, dtype=torch.bfloat16), None, [None] * self._count)


def stub_run(source: StubSource, out: Path, options: RunOptions) -> Run:
    """A run of that source."""
    model = find_model(CONFIG, options, torch.device("cpu"))
    recipe = recipe_of(CONFIG, identify(model, CONFIG, {}))
    return Run(
        source=source, origin=Origin("stub"), cache=out, config=CONFIG, options=options, model=model, recipe=recipe
    )


def make_parts(run: Run, parts: Iterable[Part], seconds_per_image: float = 0.0) -> None:
    """Make the parts with the stub encoder."""
    reusable = find_reusable(run, frozenset())
    encode_parts(run, parts, StubEncoder(seconds_per_image), reusable, 1, Counter(Listener()))
