"""Autoencoders side by side on a few images: reconstructions, differences, scores, time and memory.

    comparison = compare_images([Path("photos")], CompareOptions(models=("f32c32-tiny", "taesd")))
    save_grid(comparison.grid(), Path("grid.png"))

All see the same pixels: each image is resized and cropped once, to sides that every model's factor divides. One model
is in memory at a time. Knows nothing of caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..compute.devices import TORCH_DTYPES, pick_device
from ..config import DEFAULT_MAX_PIXELS
from ..errors import SampleSkipped, SourceError, UsageError
from ..images.buckets import BucketRule
from ..images.pixels import image_size, load_pixels
from ..metrics.image_scores import Scores
from ..metrics.set_scores import lpips_if_at_hand
from ..models.options import HubOptions
from ..records import DtypeName
from ..sources.base import SourceOptions
from ..sources.folder import FolderSource, location_to_path
from ..sources.trees import LocalTree
from .grid import Column, Pair, Row, draw_grid, shrink
from .measure import Measurement, common_factor
from .side_by_side import AutoencoderResult, Candidates, ImageBatch, compare_autoencoders, find_autoencoder

DEFAULT_MODEL = "f32c32-tiny"  # shipped in the package: it runs without a network
MAX_ROWS = 24  # of the grid; more images are scored all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What to compare and how. ``resolution`` is that of ``encode`` with area buckets; None: native, only cropped.

    ``amplify`` multiplies the differences in the grid. ``dtype`` is that of every model's arithmetic.
    """

    models: Sequence[str] = (DEFAULT_MODEL,)
    resolution: int | None = 512
    device: str = "auto"
    dtype: DtypeName = "fp32"
    amplify: float = 5.0
    lpips_weights: Path | None = None
    hub: HubOptions = field(default_factory=HubOptions)
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("`models`: name at least one")
        if not 0 < self.amplify < float("inf"):
            raise UsageError(f"`amplify` must be above 0, not {self.amplify}.")


@dataclass(slots=True)
class ImageResult:
    """One image: its path, the size every model saw, and each model's scores; one that failed before it is absent."""

    path: Path
    height: int
    width: int
    scores: dict[str, Scores] = field(default_factory=dict)


@dataclass(slots=True)
class Comparison:
    """The standings in the order of the models named, the images in the order given, and what the grid shows."""

    standings: list[AutoencoderResult]
    images: list[ImageResult]
    device: torch.device
    dtype: DtypeName
    amplify: float
    lpips_note: str | None  # why there is no LPIPS, or None
    _rows: list[Row] = field(default_factory=list)
    _pairs: list[list[Pair]] = field(default_factory=list)

    def grid(self) -> Image.Image:
        """The labelled grid, of the first MAX_ROWS images."""
        columns = [
            Column(result.name, describe(result), pairs, result.failure)
            for result, pairs in zip(self.standings, self._pairs, strict=True)
        ]
        footer = f"Right of each reconstruction: its absolute difference to the original, times {self.amplify:g}. "
        footer += f"Times are for one image, on {self.device} in {self.dtype}."
        left_out = len(self.images) - len(self._rows)
        if left_out:
            footer += f" {left_out} more images are scored but not shown."
        return draw_grid(self._rows, columns, footer)


def describe(result: AutoencoderResult) -> list[str]:
    """A model's results in a few short lines; none where it did nothing."""
    if result.mean is None or result.encode_seconds is None or result.decode_seconds is None:
        return []
    what = f"f{result.spatial_compression_ratio} c{result.latent_channels}"
    if result.latent_bytes is not None and result.compression_ratio is not None:
        what += f", {result.latent_bytes / 1024:.1f} KiB a latent, 1/{result.compression_ratio:.1f} of the pixels"
    scores = f"mean PSNR {result.mean.psnr:.2f} dB, SSIM {result.mean.ssim:.4f}"
    scores += "".join(f", {score.name} {score.value:.4f}" for score in result.set_scores if score.value is not None)
    time = f"encode {result.encode_seconds:.3g} s, decode {result.decode_seconds:.3g} s"
    if result.peak_bytes is not None:
        time += f", peak {result.peak_bytes / 2**20:.0f} MiB"
    return [what, scores, time]


def compare_images(
    paths: Sequence[Path],
    options: CompareOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Run every model on every image (files, or folders with all that is in them).

    ``progress`` hears (images done by any model, of how many). A model that can't be had or fails has the reason in
    its result. Raises SourceError for an image that can't be read, UsageError for a device that isn't there.
    """
    options = options or CompareOptions()
    device = pick_device(options.device)
    files = _expand(paths)
    for file in files:
        _checked_size(file, options.max_pixels)
    lpips, lpips_note = lpips_if_at_hand(options.lpips_weights, device)
    names = list(dict.fromkeys(options.models))
    dtype = TORCH_DTYPES[options.dtype]
    candidates = Candidates(names, lambda name: find_autoencoder(name, device, dtype, options.hub))
    rule = _rule(options, common_factor(candidates.factors))
    result = Comparison([], [], device, options.dtype, options.amplify, lpips_note, [], [[] for _ in names])
    numbers = [0] * len(names)

    def on_batch(place: int, batch: ImageBatch, measured: Measurement, scores: list[Scores]) -> None:
        number = numbers[place]
        numbers[place] += 1
        result.images[number].scores[names[place]] = scores[0]
        if number < MAX_ROWS:
            label = f"PSNR {scores[0].psnr:.2f} dB, SSIM {scores[0].ssim:.4f}, MSE {scores[0].mse:.1f}"
            ours, difference = (
                measured.reconstruction[0],
                _difference(measured.reconstruction[0], batch.images[0], options),
            )
            result._pairs[place].append(Pair(shrink(_picture(ours)), shrink(_picture(difference)), label))
        progress(sum(numbers), len(files) * len(names))

    for file, batch in zip(files, _batches(files, rule, options.max_pixels), strict=True):
        height, width = batch.images.shape[2:]
        result.images.append(ImageResult(file, height, width))
        if len(result._rows) < MAX_ROWS:
            result._rows.append(Row(shrink(_picture(batch.images[0])), f"{file.name}, {height}x{width}"))
    result.standings = compare_autoencoders(
        names,
        lambda: _batches(files, rule, options.max_pixels),
        candidates.open,
        set_metrics=[] if lpips is None else [lpips],
        on_batch=on_batch,
    )
    return result


def _rule(options: CompareOptions, factor: int) -> BucketRule:
    if options.resolution is None:
        return BucketRule(kind="native", factor=factor)
    return BucketRule(kind="area", resolution=options.resolution, factor=factor)


def _expand(paths: Iterable[Path]) -> list[Path]:
    """The files named, and those in the folders named."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            entries = FolderSource(LocalTree(path), SourceOptions()).entries()
            files += [path / location_to_path(entry.location) for entry in entries]
        else:
            files.append(path)
    if not files:
        raise UsageError("No image was named.")
    return files


def _checked_size(file: Path, max_pixels: int) -> None:
    """Refuse what can't be an image before any model is opened."""
    try:
        with file.open("rb") as opened:
            image_size(opened, max_pixels)
    except SampleSkipped as skip:
        raise SourceError(f"{file} can't be compared: {skip}") from skip
    except OSError as error:
        raise SourceError(f"Can't read {file}: {error.strerror or error}.") from error


def _batches(files: Sequence[Path], rule: BucketRule, max_pixels: int) -> Iterator[ImageBatch]:
    """One image after the other, as a batch of one: images of a comparison differ in size."""
    for file in files:
        try:
            pixels = load_pixels(file.read_bytes(), rule, max_pixels)
        except SampleSkipped as skip:
            raise SourceError(f"{file} can't be compared: {skip}") from skip
        except OSError as error:
            raise SourceError(f"Can't read {file}: {error.strerror or error}.") from error
        yield ImageBatch(torch.from_numpy(pixels.data).permute(2, 0, 1)[None].contiguous(), [str(file)])


def _difference(ours: Tensor, image: Tensor, options: CompareOptions) -> Tensor:
    """The absolute difference of two images, times ``amplify``, clipped to uint8."""
    return (ours.int() - image.int()).abs().mul(options.amplify).clamp(0, 255).to(torch.uint8)


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
