"""Are the latents of a cache right? Its files first, then a sample of them decoded and encoded anew.

    report = verify_cache("latents", VerifyOptions(samples=256, against=("taesd",)))

The sample is drawn evenly over the buckets with a fixed seed; its images are read again from the source and cropped as
the recipe says. Knows nothing of how a cache is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..cache.brought import BroughtCache, brought
from ..cache.index import load_index
from ..cache.integrity import Finding, check_integrity
from ..cache.moments import BELIEVABLE_STD, overall_std
from ..cache.recipe import IMPORTED
from ..compute.devices import pick_device
from ..compute.memory import free_memory
from ..decode.cache_model import CacheModel
from ..errors import DamagedIndexError, UsageError
from ..metrics.image_scores import Scores
from ..metrics.set_scores import Fid, SetMetric, lpips_if_at_hand
from ..models.options import HubOptions
from ..reader.dataset import LatentDataset
from ..sources.base import SourceOptions
from .against import ComparedWith, SideBySide, compare_cache
from .aggregate import Aggregate
from .pictures import Picture, take_pictures
from .recorded import EDITABLE
from .round_trip import Checked, check_round_trip
from .skipped import check_skipped
from .source_images import COLUMNS, SourceImages, pick_samples

_DEAD = 1e-3  # a channel's std below this carries nothing

Report = Callable[[str, int, int], None]  # what ("parts", "samples" or "images"), done, total


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What to check and how.

    ``source``: where the images are, if they moved; None: where the cache says, if this person has named that place
    before. ``allowed``: what may be done to read them (``allow_pipe``, ``max_bytes`` and the like; no columns).
    ``edited``: columns that were changed on purpose: "caption", "label", "attributes".
    ``samples``: how many to decode, drawn evenly over the buckets; None: all. ``seed``: of the drawing.
    ``integrity_only``: check the files alone; no source and no model is needed.
    ``min_psnr`` (dB), ``min_ssim``: what the means over the decoded samples must reach, or there is a finding.
    ``against``: autoencoders and caches to stand beside this one, as ``compare`` takes them.
    ``fid``: compute FID over the decoded samples. ``fid_weights``, ``lpips_weights``: files with published weights;
    None: downloaded for FID, and for LPIPS used only if they are there already.
    ``pictures``: keep the worst, median and best samples' images for a report.
    ``model``: where the cache's model is now, if it moved; None: the one that the index names.
    ``device``: "auto", "cpu", "cuda", "cuda:N" or "mps". ``hub``: how models are fetched.

    Raises UsageError for settings that can't be combined.
    """

    source: str | None = None
    allowed: SourceOptions = field(default_factory=SourceOptions)
    edited: Sequence[str] = ()
    samples: int | None = 64
    seed: int = 0
    integrity_only: bool = False
    min_psnr: float | None = None
    min_ssim: float | None = None
    against: Sequence[str] = ()
    fid: bool = False
    fid_weights: Path | None = None
    lpips_weights: Path | None = None
    pictures: bool = False
    model: str | None = None  # None: the one the index names
    device: str = "auto"
    hub: HubOptions = field(default_factory=HubOptions)

    def __post_init__(self) -> None:
        strange = [name for name in self.edited if name not in EDITABLE]
        if strange:
            raise UsageError(f"`edited` names {', '.join(EDITABLE)}, not {strange[0]!r}.")
        if self.fid_weights is not None and not self.fid:
            raise UsageError("`fid_weights` is of use with `fid` only.")
        if self.integrity_only and (self.side_by_side or self.min_psnr is not None or self.min_ssim is not None):
            raise UsageError("`integrity_only` decodes nothing, so there is nothing to score or compare.")

    @property
    def side_by_side(self) -> bool:
        """Whether anything asked for takes a second look at the images."""
        return bool(self.against) or self.fid or self.lpips_weights is not None


@dataclass(slots=True)
class VerifyReport:
    """What was found: ``findings`` are wrong, ``warnings`` may be. ``checked`` holds the decoded samples, by key."""

    cache: Path  # the folder with its files
    name: str  # what its user calls it: that folder, or a URL
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    index: dict[str, Any] | None = None  # None where it can't be read
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    checked: dict[str, Checked] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    aggregates: dict[str, Aggregate] = field(default_factory=dict)  # means over them: of "latents", of "mirrored"
    side_by_side: SideBySide | None = None
    lpips_note: str | None = None  # why there is no LPIPS beside the others

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def num_parts(self) -> int:
        return len(self.index["parts"]) if self.index else 0

    @property
    def num_samples(self) -> int:
        return int(self.index["totals"]["num_samples"]) if self.index else 0

    @property
    def overall_std(self) -> float | None:
        """The standard deviation of all stored latents, scaled; None where there are none."""
        statistics = self.index["statistics"] if self.index else {"std": []}
        return overall_std(statistics["mean"], statistics["std"]) if statistics["std"] else None

    @property
    def scores(self) -> dict[str, Scores]:
        return {key: checked.scores for key, checked in self.checked.items()}

    @property
    def mean(self) -> Scores | None:
        return Scores.mean([checked.scores for checked in self.checked.values()]) if self.checked else None

    @property
    def ranked(self) -> list[str]:
        """The keys of the decoded samples, lowest PSNR first."""
        return sorted(self.checked, key=lambda key: (self.checked[key].scores.psnr, key))


def verify_cache(
    cache: str | Path,
    options: VerifyOptions | None = None,
    progress: Report = lambda what, done, total: None,
) -> VerifyReport:
    """Check a cache's files and, unless told otherwise, decode a sample of its latents and encode their images anew.

    What a check finds wrong is not raised but in the report's ``findings``; ``ok`` is True without any. Scores are on
    [0, 255]: PSNR in dB, the mean of the images' own. Nothing on disk is changed. ``progress`` hears ("parts" checked,
    "samples" decoded or "images" of the comparison, done, total).

    ``cache`` is a folder or a URL; of one far away each shard is here only while it is checked.

    Raises CacheError for a folder that is no finished cache, UsageError for a device that isn't there;
    VerificationError, SourceError or ModelError where a check can't be carried out.
    """
    with brought(cache) as here:
        return _verify(here, options or VerifyOptions(), progress)


def _verify(here: BroughtCache, options: VerifyOptions, progress: Report) -> VerifyReport:
    result = VerifyReport(here.folder, here.name)
    try:
        result.index = load_index(result.cache)
    except DamagedIndexError as error:
        result.findings.append(Finding("index.json", str(error), "run the same encode command again"))
        return result
    result.findings += check_integrity(result.cache, lambda done, total: progress("parts", done, total), here.shard)
    result.warnings += check_statistics(result.index)
    if not options.integrity_only and result.ok:
        _check_latents(here, result, options, progress)
        _apply_thresholds(result, options)
    return result


def check_statistics(index: dict[str, Any]) -> list[str]:
    """What is odd about the latents as a whole: scaled ones of photographs have a standard deviation of about 1."""
    mean, std = index["statistics"]["mean"], index["statistics"]["std"]
    if not std:
        return []
    warnings = []
    overall = overall_std(mean, std)
    low, high = BELIEVABLE_STD
    if not low <= overall <= high:
        warnings.append(
            f"the latents' standard deviation is {overall:.3g}, where scaled latents of photographs have about 1 "
            f"(scaling factor {index['latent']['scaling_factor']:g}): unusual images, or the wrong scale"
        )
    dead = [str(channel) for channel, value in enumerate(std) if value < _DEAD]
    if dead:
        warnings.append(f"the latents hardly vary in channels {', '.join(dead)}: all images alike, or broken weights")
    return warnings


def _check_latents(here: BroughtCache, result: VerifyReport, options: VerifyOptions, progress: Report) -> None:
    assert result.index is not None
    dataset = LatentDataset(result.cache, columns=COLUMNS, allow_incomplete=True)
    if IMPORTED in result.index["recipe"]:
        if options.source is None:
            result.warnings.append(
                "the latents were imported, with no images to compare them with: say where: `source`"
            )
            return
        result.warnings.append(
            "the latents were imported: how their images were fitted is not known, so a latent that differs from a "
            "fresh encoding isn't called wrong"
        )
    numbers = pick_samples(dataset, options.samples, options.seed)
    if not numbers and not result.index["totals"]["num_skipped"]:
        return
    here.keep(dataset.part_of(number) for number in numbers)
    device = pick_device(options.device)
    others = _compared_with(result, options, device) if options.side_by_side else None
    images = SourceImages(dataset, options.source, device.type, options.allowed, options.edited)
    open_model = partial(CacheModel, result.index, device, options.model, options.hub)
    model = open_model()

    def checked(key: str, sample: Checked) -> None:
        result.checked[key] = sample
        progress("samples", len(result.checked), len(numbers))

    found = result.findings.append
    result.aggregates = check_round_trip(dataset, images.batches(numbers, found), model, found, checked)
    check_skipped(dataset, images, options.samples, options.seed, result)
    if options.pictures:
        ranked = {key: result.checked[key].number for key in result.ranked}
        result.pictures = take_pictures(dataset, images, model, ranked)
    if others is not None and result.checked:
        del model  # or it would count as memory that the others take
        free_memory()
        result.side_by_side = compare_cache(
            dataset,
            sorted(sample.number for sample in result.checked.values()),
            lambda chosen: images.batches(chosen, lambda finding: None),  # what is wrong is known already
            open_model,
            others,
            lambda done, total: progress("images", done, total),
        )


def _compared_with(result: VerifyReport, options: VerifyOptions, device: torch.device) -> ComparedWith:
    """Who stands beside the cache, and by what. Made before anything is decoded: weights may be missing."""
    set_metrics: list[SetMetric] = [Fid(options.fid_weights, device)] if options.fid else []
    lpips, result.lpips_note = lpips_if_at_hand(options.lpips_weights, device)
    set_metrics += [lpips] if lpips is not None else []
    return ComparedWith(tuple(options.against), device, options.hub, set_metrics)


def _apply_thresholds(result: VerifyReport, options: VerifyOptions) -> None:
    mean = result.mean
    if mean is None:
        return
    worst = ", ".join(f"{key} ({result.checked[key].scores.psnr:.2f} dB)" for key in result.ranked[:3])
    for name, value, minimum in (("PSNR", mean.psnr, options.min_psnr), ("SSIM", mean.ssim, options.min_ssim)):
        if minimum is not None and value < minimum:
            what = f"mean {name} is {value:.4g}, below the {minimum:g} asked for; worst: {worst}"
            result.findings.append(Finding("decoded samples", what, "look at the worst ones"))
