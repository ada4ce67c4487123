"""Stored latents there and back: decoded and scored against their images, and held against a fresh encoding.

The first says how good the autoencoder is on these images; only the second tells a row that is stale, swapped or
scaled from one that the autoencoder is merely bad at. Knows nothing of sources or reports.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..cache.integrity import Finding
from ..cache.recipe import IMPORTED
from ..compute.cores import default_workers
from ..compute.lanes import Lanes
from ..decode.cache_model import CacheModel
from ..errors import NoMemoryError
from ..metrics.image_scores import Scores, score_batch
from ..models.latent_encoder import EncodedBatch, LatentEncoder, PendingBatch
from ..reader.dataset import LatentDataset
from .aggregate import Aggregate, Differences, Limits, judge, limits_for
from .diagnosis import Tolerance, agrees, diagnose, relative_difference, tolerance_for
from .source_images import DELETE_PART, SampleBatch

_MAKE_ANEW = "encode into a new folder, and find out what changed these"
_TRACED = 100  # wrong rows that are looked for elsewhere: it takes another encoding, and a look at a whole tensor


@dataclass(frozen=True, slots=True)
class Checked:
    """One sample: its number in the dataset, how its decoded latent compares with its image, and by how much the
    stored latent differs from a fresh one (relative, see diagnosis.py)."""

    number: int
    scores: Scores
    difference: float


def check_round_trip(
    dataset: LatentDataset,
    batches: Iterable[SampleBatch],
    model: CacheModel,
    found: Callable[[Finding], None],
    checked: Callable[[str, Checked], None],
) -> dict[str, Aggregate]:
    """Check every sample of the batches. ``found`` hears of rows that aren't their image's latent, and of what only
    all of them together show; ``checked`` of every sample, by key. The dataset gives latents as stored. Returns the
    means over the samples that are right one by one: of "latents" and, where there are any, "mirrored"."""
    mirrored = None
    if model.recipe["flip"]:
        mirrored = LatentDataset(dataset.cache, columns=(), flipped=True, allow_incomplete=True)
    sums = {"latents": Differences(), "mirrored": Differences()}
    cores = default_workers()
    with model.encoder(streams=cores) as encoder, Lanes(model.device, cores) as lanes:
        # Others fitted their images in ways of their own: nothing says how near an imported latent must be.
        tolerance = tolerance_for(model.recipe["dtype"], model.recipe["compute_dtype"])
        judging = None if IMPORTED in model.recipe else _Judge(dataset, encoder, tolerance)
        at_once = cores + 1 if model.device.type == "cpu" else 1
        for done in _there_and_back(batches, dataset, model, encoder, lanes, at_once):
            batch, stored, fresh = done.batch, done.stored, done.fresh
            for place, (number, key) in enumerate(zip(batch.numbers, batch.keys, strict=True)):
                wrong = judging.findings(batch, place, fresh, mirrored) if judging else []
                for finding in wrong:
                    found(finding)
                if judging and not wrong:
                    sums["latents"].add(stored[place], fresh.latents[place])
                    if mirrored is not None and fresh.mirrored is not None:
                        sums["mirrored"].add(mirrored.latents(number), fresh.mirrored[place])
                difference = relative_difference(stored[place], fresh.latents[place])
                checked(key, Checked(number, done.scores[place], difference))
    return _judged_together(sums, limits_for(model.recipe["dtype"], model.recipe["compute_dtype"]), found)


@dataclass(frozen=True, slots=True)
class _Done:
    """A batch with its latents as stored, their decoded images' scores, and its latents made anew."""

    batch: SampleBatch
    stored: Tensor
    scores: Sequence[Scores]
    fresh: EncodedBatch


def _there_and_back(
    batches: Iterable[SampleBatch],
    dataset: LatentDataset,
    model: CacheModel,
    encoder: LatentEncoder,
    lanes: Lanes,
    at_once: int,
) -> Iterator[_Done]:
    """Every batch in turn, while the next ones, up to ``at_once``, are under way."""
    started: deque[tuple[SampleBatch, Tensor, PendingBatch, Future[list[Scores]]]] = deque()

    def finish() -> _Done:
        batch, stored, pending, scores = started.popleft()
        fresh = pending.result()
        if "no_memory" in fresh.faults:
            key = batch.keys[fresh.faults.index("no_memory")]
            raise NoMemoryError(f"{model.device} has no memory to encode {key} again; use another `device`.")
        return _Done(batch, stored, scores.result(), fresh)

    for batch in batches:
        stored = dataset.stack(batch.numbers)
        pending = encoder.launch(_as_arrays(batch.images))
        started.append((batch, stored, pending, lanes.start(partial(_scores, model, stored, batch.images))))
        if len(started) >= at_once:
            yield finish()
    while started:
        yield finish()


def _scores(model: CacheModel, stored: Tensor, images: Tensor) -> list[Scores]:
    return score_batch(model.decode(stored), images, model.device)


def _judged_together(
    sums: Mapping[str, Differences], limits: Limits, found: Callable[[Finding], None]
) -> dict[str, Aggregate]:
    means = {name: mean for name, differences in sums.items() if (mean := differences.aggregate()) is not None}
    for name, mean in means.items():
        which = "the stored latents" if name == "latents" else "the latents of mirrored images"
        for what in judge(mean, limits):
            found(
                Finding(
                    "all decoded samples", f"{which} {what}", "encode into a new folder, and find out what was changed"
                )
            )
    return means


class _Judge:
    """Says what is wrong with a row."""

    def __init__(self, dataset: LatentDataset, encoder: LatentEncoder, tolerance: Tolerance) -> None:
        self._dataset, self._encoder, self._tolerance = dataset, encoder, tolerance
        self._num_wrong = 0

    def findings(
        self, batch: SampleBatch, place: int, fresh: EncodedBatch, mirrored: LatentDataset | None
    ) -> list[Finding]:
        """What is wrong with one sample of a batch: its latent, and that of the mirrored image if there is one."""
        number, image = batch.numbers[place], batch.images[place]
        sides = [("", self._dataset, fresh.latents[place], image.flip(2))]
        if mirrored is not None and fresh.mirrored is not None:
            sides.append(("of its mirrored image ", mirrored, fresh.mirrored[place], image))
        found = []
        for which, dataset, right, opposite in sides:
            stored = dataset.latents(number)
            if not agrees(stored, right, self._tolerance):
                self._num_wrong += 1
                traced = self._num_wrong <= _TRACED
                what = diagnose(stored, right, partial(self._encode, opposite) if traced else None, self._tolerance)
                what += self._where(dataset, number, right) if traced else ""
                part = dataset.part_of(number)
                found.append(Finding(batch.keys[place], f"the latent stored {which}in {part} {what}", DELETE_PART))
        return found

    def _encode(self, image: Tensor) -> Tensor:
        return self._encoder.encode(_as_arrays(image[None])).latents[0]

    def _where(self, dataset: LatentDataset, number: int, right: Tensor) -> str:
        """The row of the same part and bucket that holds the right latent, if it isn't this one."""
        numbers, latents = dataset.neighbours(number)
        for other, latent in zip(numbers, latents, strict=True):
            if other != number and agrees(latent, right, self._tolerance):
                return f"; that one stands in the row of {self._dataset.describe(other)['key']}"
        return ""


def _as_arrays(images: Tensor) -> list[NDArray[np.uint8]]:
    return [image.permute(1, 2, 0).numpy() for image in images]
