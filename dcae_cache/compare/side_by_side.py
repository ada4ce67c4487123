"""How several autoencoders stand on the same images: scores, times and sizes, gathered batch by batch.

    results = compare_autoencoders(["f32c32-tiny", "taesd"], batches, open_one, set_metrics=[Fid()])

``batches()`` gives the batches anew for each side, so that only one autoencoder is in memory at a time, and no more
than one batch of images. A side that fails says why; the others go on. Knows nothing of caches or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..compute.devices import device_errors
from ..compute.memory import free_memory
from ..errors import DCAECacheError, ModelError, TensorError, one_line
from ..metrics.image_scores import Scores, score_batch
from ..metrics.set_scores import SetMetric, SetScore
from ..models.autoencoder import Autoencoder, locate, open_autoencoder
from ..models.options import HubOptions
from .measure import Measurement, measure, warm_up


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images uint8 [N, 3, H, W] and their keys, by which an autoencoder may find latents that are stored."""

    images: Tensor
    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class AutoencoderResult:
    """One autoencoder's results over all images it was given.

    Seconds, ``latent_bytes`` and ``compression_ratio`` are for the mean image; ``peak_bytes`` is the highest of any
    batch. ``latent_shape`` (c, h, w) is None where images of several sizes gave several. ``failure`` says why it
    stopped, and then all else describes the images before that.
    """

    name: str
    num_images: int
    mean: Scores | None
    encode_seconds: float | None
    decode_seconds: float | None
    peak_bytes: int | None
    latent_shape: tuple[int, int, int] | None
    spatial_compression_ratio: int | None
    latent_channels: int | None
    latent_bytes: float | None
    compression_ratio: float | None
    failure: str | None = None
    caution: str | None = None
    set_scores: tuple[SetScore, ...] = ()


OnBatch = Callable[[int, ImageBatch, Measurement, list[Scores]], None]  # autoencoder's number, what it made


@dataclass(slots=True)
class Trial:
    """One autoencoder and what was gathered of it so far. Keeps scores, a few numbers an image, and no images."""

    autoencoder: Autoencoder
    scores: list[Scores] = field(default_factory=list)
    _encode: float = 0.0
    _decode: float = 0.0
    _peak: int | None = None
    _latent_bytes: int = 0
    _image_bytes: int = 0
    _shapes: set[tuple[int, int, int]] = field(default_factory=set)
    _warm: set[torch.Size | None] = field(default_factory=set)

    def add(self, batch: ImageBatch) -> Measurement:
        """Run and score a batch; the scores of its images are the last ones of ``scores``."""
        images = batch.images
        # A GPU loads its kernels for each new size, a CPU for the first one.
        key = images.shape[1:] if self.autoencoder.device.type == "cuda" else None
        if key not in self._warm:
            warm_up(self.autoencoder, images)
            self._warm.add(key)
        stored = self.autoencoder.stored(batch.keys)
        measured = measure(self.autoencoder, images, warm=True, stored=stored)
        self.scores += score_batch(measured.reconstruction, images, self.autoencoder.device)
        self._encode += measured.encode_seconds * len(images)
        self._decode += measured.decode_seconds * len(images)
        if measured.peak_bytes is not None:
            self._peak = max(self._peak or 0, measured.peak_bytes)
        self._latent_bytes += measured.latent_bytes * len(images)
        self._image_bytes += measured.image_bytes * len(images)
        self._shapes.add(measured.latent_shape)
        return measured

    def result(self, failure: str | None = None, set_scores: Sequence[SetScore] = ()) -> AutoencoderResult:
        """The means over everything added."""
        count, autoencoder = len(self.scores), self.autoencoder
        return AutoencoderResult(
            name=autoencoder.name,
            num_images=count,
            mean=Scores.mean(self.scores) if count else None,
            encode_seconds=self._encode / count if count else None,
            decode_seconds=self._decode / count if count else None,
            peak_bytes=self._peak,
            latent_shape=next(iter(self._shapes)) if len(self._shapes) == 1 else None,
            spatial_compression_ratio=autoencoder.spatial_compression_ratio,
            latent_channels=autoencoder.latent_channels,
            latent_bytes=self._latent_bytes / count if count else None,
            compression_ratio=self._image_bytes / self._latent_bytes if count else None,
            failure=failure,
            caution=autoencoder.caution,
            set_scores=tuple(set_scores),
        )


def failed(name: str, error: BaseException) -> AutoencoderResult:
    """The result of an autoencoder that could not even be opened."""
    return AutoencoderResult(name, 0, None, None, None, None, None, None, None, None, None, failure=one_line(error))


def compare_autoencoders(
    names: Sequence[str],
    batches: Callable[[], Iterable[ImageBatch]],
    open_one: Callable[[str], Autoencoder],
    *,
    set_metrics: Sequence[SetMetric] = (),
    on_batch: OnBatch = lambda number, batch, measured, scores: None,
) -> list[AutoencoderResult]:
    """Each named autoencoder on every batch, one after the other, in the order of ``names``.

    ``batches()`` must give the same batches each time, of images with sides that every factor divides
    (``crop_alike``). ``on_batch`` gets the autoencoder's number and each batch, its measurement and scores. Errors
    of a model end its part alone; those of ``batches`` end the call.
    """
    results = []
    for number, name in enumerate(names):
        try:
            autoencoder = open_one(name)
        except ModelError as error:
            results.append(failed(name, error))
            continue
        for metric in set_metrics:
            metric.start()
        trial = Trial(autoencoder)
        failure = None
        for batch in batches():
            try:
                with device_errors(autoencoder.device, f"running {name}"):
                    measured = trial.add(batch)
            except (ModelError, TensorError) as error:
                failure = one_line(error)
                break
            for metric in set_metrics:
                metric.add(batch.images, measured.reconstruction)
            on_batch(number, batch, measured, trial.scores[-len(batch.keys) :])
        scores = [] if failure else [_set_score(metric) for metric in set_metrics]
        results.append(trial.result(failure, scores))
        del trial, autoencoder
        free_memory()
    return results


def _set_score(metric: SetMetric) -> SetScore:
    try:
        return metric.result()
    except DCAECacheError as error:
        return SetScore(metric.name, None, 0, one_line(error))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One that was found: its factor, and how to put it on the device."""

    spatial_compression_ratio: int
    open: Callable[[], Autoencoder]


class Candidates:
    """Finds the named ones in order; a ModelError of ``find`` is kept until that name is opened."""

    def __init__(self, names: Sequence[str], find: Callable[[str], Candidate]) -> None:
        self._found: dict[str, Candidate | ModelError] = {}
        for name in names:
            try:
                self._found[name] = find(name)
            except ModelError as error:
                self._found[name] = error

    @property
    def factors(self) -> list[int]:
        """The spatial compression ratios of those that were found."""
        return [found.spatial_compression_ratio for found in self._found.values() if isinstance(found, Candidate)]

    def open(self, name: str) -> Autoencoder:
        """The named one, with its weights on the device. Raises the ModelError it was not found for."""
        found = self._found[name]
        if isinstance(found, ModelError):
            raise found
        return found.open()


def find_autoencoder(name: str, device: torch.device, dtype: torch.dtype, hub: HubOptions) -> Candidate:
    """Find an autoencoder by name, downloading what it lacks. Raises what ``autoencoders.locate`` does."""
    located = locate(name, hub)
    factor = located.spatial_compression_ratio
    if factor is None:
        factor = open_autoencoder(located, device, dtype).spatial_compression_ratio
        free_memory()
    return Candidate(factor, partial(open_autoencoder, located, device, dtype))
