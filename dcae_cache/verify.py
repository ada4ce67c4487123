"""Do the stored latents decode to the images they were made from? Integrity first, then a sample is decoded.

The sample is drawn evenly over the buckets with a fixed seed; its sources are read again, cropped as the recipe says
and compared with the decoded latents. Knows nothing of how a cache is written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from .config import EncodeConfig
from .encoder import pick_device
from .errors import DamagedIndexError, SampleSkipped, SourceError, VerificationError
from .images import load_pixels
from .index import load_index
from .integrity import Finding, check_integrity
from .metrics import Scores, score, to_uint8
from .models.autoencoder import DCAE
from .plan import load_plan
from .reader import LatentDataset
from .records import Part, Pixels, Sample
from .sources import Source, SourceOptions, open_source

_CROP_COLUMNS = ("bucket_height", "bucket_width", "resized_height", "resized_width", "crop_top", "crop_left")
_COLUMNS = ("key", "source_hash", *_CROP_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What to check and how. ``samples``: how many to decode, None for all. Thresholds are for the mean."""

    source: str | None = None  # None: where the index says
    samples: int | None = 64
    seed: int = 0
    integrity_only: bool = False
    min_psnr: float | None = None
    min_ssim: float | None = None
    model: str | None = None  # None: the one the index names
    device: str = "auto"
    cache_dir: str | None = None
    token: str | None = None
    offline: bool = False


@dataclass(slots=True)
class VerifyReport:
    """What was found. ``scores`` holds the decoded samples, by key; ``ok`` is the verdict."""

    num_parts: int
    num_samples: int
    findings: list[Finding] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def mean(self) -> Scores | None:
        return Scores.mean(list(self.scores.values())) if self.scores else None

    @property
    def worst(self) -> list[tuple[str, Scores]]:
        """The three samples of lowest PSNR."""
        return sorted(self.scores.items(), key=lambda item: item[1].psnr)[:3]


def verify_cache(
    cache: str | Path,
    options: VerifyOptions | None = None,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> VerifyReport:
    """Check a cache's integrity and, unless told otherwise, decode a sample and compare it with its sources.

    ``report`` hears ("parts" checked or "samples" decoded, done, total). Raises VerificationError, SourceError or
    ModelError where a check can't be carried out; what a check finds wrong is in the report.
    """
    folder, options = Path(cache), options or VerifyOptions()
    try:
        index = load_index(folder)
    except DamagedIndexError as error:
        return VerifyReport(0, 0, [Finding("index.json", str(error), "run the same encode command again")])
    result = VerifyReport(len(index["parts"]), index["totals"]["num_samples"])
    result.findings += check_integrity(folder, lambda done, total: report("parts", done, total))
    if options.integrity_only or result.findings:
        return result
    dataset = LatentDataset(folder, columns=_COLUMNS, raw=True)
    numbers = pick_samples(dataset, options.samples, options.seed)
    if not numbers:
        return result
    _compare(dataset, numbers, options, result, lambda done: report("samples", done, len(numbers)))
    _apply_thresholds(result, options)
    return result


def pick_samples(dataset: LatentDataset, count: int | None, seed: int) -> list[int]:
    """``count`` sample numbers spread evenly over the buckets (a small bucket gives all it has), sorted; None: all."""
    if count is None or count >= len(dataset):
        return list(range(len(dataset)))
    random = np.random.default_rng(seed)
    queues = [
        random.permutation(np.concatenate([np.arange(run.start, run.stop) for run in runs])).tolist()
        for _, runs in sorted(dataset.buckets().items())
    ]
    picked: list[int] = []
    while len(picked) < count:
        for queue in queues:
            if queue and len(picked) < count:
                picked.append(queue.pop())
    return sorted(picked)


def _compare(
    dataset: LatentDataset,
    numbers: Sequence[int],
    options: VerifyOptions,
    result: VerifyReport,
    report: Callable[[int], None],
) -> None:
    config = config_of(dataset.index["recipe"])
    rule = config.bucket_rule(dataset.spatial_compression_ratio)
    wanted = {sample["key"]: sample for sample in (dataset[number] for number in numbers)}
    autoencoder = _open_model(dataset.index, options)
    parts = {dataset.part_of(number) for number in numbers}
    for done, (key, sample) in enumerate(_read_again(dataset, options.source, parts, set(wanted)), 1):
        stored = wanted.pop(key)
        try:
            pixels = load_pixels(sample.data, rule, config.max_pixels)
        except SampleSkipped as skip:
            result.findings.append(Finding(key, f"its source can't be read any more: {skip}"))
            continue
        changed = _what_changed(stored, sample, pixels)
        if changed:
            result.findings.append(Finding(key, changed))
            continue
        image = torch.from_numpy(pixels.data).permute(2, 0, 1)
        decoded = autoencoder.decode(stored["latents"][None])[0].cpu()
        result.scores[key] = score(to_uint8(decoded), image)
        report(done)
    for key in wanted:
        result.findings.append(Finding(key, "is not in the source any more", "give --source, or leave it be"))


def _read_again(
    dataset: LatentDataset, source: str | None, parts: set[str], keys: set[str]
) -> Iterator[tuple[str, Sample]]:
    """The named samples, read from the source. One that can't be read is left out."""
    plan = load_plan(dataset.cache)
    assert plan is not None, "integrity was checked"
    uri = source or plan.origin.uri
    try:
        origin = open_source(uri, SourceOptions.from_json(plan.origin.options))
    except SourceError as error:
        raise VerificationError(
            f"{error} The images of this cache were there; say where they are now: --source"
        ) from error
    for part in plan.parts():
        if part.name not in parts:
            continue
        for ref in origin.read(part if source is None else _moved(part, origin)):
            if ref.key in keys:
                try:
                    yield ref.key, ref.load()
                except (SampleSkipped, OSError):
                    continue


def _moved(part: Part, origin: Source) -> Part:
    """The part with its entries where ``origin`` has them now. Files of a folder, and rows, are named relative to it;
    input tars by their whole path, so they are found by their name."""
    if origin.entries_per_part is None:
        return part
    now = {PurePosixPath(entry.location).name: entry.location for entry in origin.entries()}
    names = [PurePosixPath(entry.location).name for entry in part.entries]
    missing = [name for name in names if name not in now]
    if missing:
        raise VerificationError(f"{origin.uri} has no {missing[0]}, which the cache was made from.")
    return Part(
        part.number,
        tuple(replace(entry, location=now[name]) for entry, name in zip(part.entries, names, strict=True)),
    )


def _what_changed(stored: dict[str, Any], sample: Sample, pixels: Pixels) -> str | None:
    """Why the image read now is not the one that was encoded, or None."""
    if hashlib.sha256(sample.data).hexdigest() != stored["source_hash"]:
        return "its source has changed since it was encoded"
    crop = pixels.crop
    now = (
        pixels.bucket.height,
        pixels.bucket.width,
        crop.resized_height,
        crop.resized_width,
        crop.top,
        crop.left,
    )
    then = tuple(stored[name] for name in _CROP_COLUMNS)
    if now != then:
        return f"its bucket and crop are {now} by the recipe, recorded {then}"
    return None


def _open_model(index: dict[str, Any], options: VerifyOptions) -> DCAE:
    """The autoencoder the cache was made with; refused if its encoder has other weights."""
    model, recipe = index["model"], index["recipe"]
    name = options.model or model["repo_id"] or recipe["model_source"]
    autoencoder = DCAE(
        os.path.expanduser(name),
        pick_device(options.device),
        torch.float32,
        options.cache_dir,
        revision=None if options.model else model["revision"],
        token=options.token,
        offline=options.offline,
    )
    if autoencoder.encoder_sha256 != model["weights_sha256"]:
        raise VerificationError(
            f"{name} is not the model of this cache: its encoder's weights have sha256 {autoencoder.encoder_sha256}, "
            f"the cache was made with {model['weights_sha256']} ({model['name']}). Name the right one with --model."
        )
    return autoencoder


def config_of(recipe: dict[str, Any]) -> EncodeConfig:
    """The EncodeConfig that a stored recipe came from."""
    names = {item.name for item in fields(EncodeConfig)}
    return EncodeConfig(**{name: value for name, value in recipe.items() if name in names})


def _apply_thresholds(result: VerifyReport, options: VerifyOptions) -> None:
    if result.mean is None:
        return
    worst = ", ".join(f"{key} ({scores.psnr:.2f} dB)" for key, scores in result.worst)
    for name, value, minimum in (
        ("PSNR", result.mean.psnr, options.min_psnr),
        ("SSIM", result.mean.ssim, options.min_ssim),
    ):
        if minimum is not None and value < minimum:
            what = f"mean {name} is {value:.4g}, below the {minimum:g} asked for; worst: {worst}"
            result.findings.append(Finding("decoded samples", what, "look at the worst ones"))
