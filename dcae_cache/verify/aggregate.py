"""What no single latent shows but all together do: an offset, a gain or a noise that every row of a cache shares.

Of each decoded sample the differences between the stored latent and a fresh one are summed up by channel. At the end
the means over the samples are held against what rounding explains: a channel's bias (mean difference), its gain (the
factor between the two) and its spread (root mean square of the difference). Works on single latents [c, h, w]. Knows
nothing of files, models or images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

CONFIDENCE = 0.999  # that a cache in which only rounding is at work passes all tests of bias and gain together
LEAST_SAMPLES = 8  # fewer say nothing about their mean


@dataclass(frozen=True, slots=True)
class Limits:
    """How far the means over many samples may be off on account of rounding alone.

    ``gain``: of the factor from 1. ``bias``: of a channel, relative to the root mean square of all latents.
    ``spread``: the difference's root mean square over that of the latents; a single channel may have twice as much.
    """

    gain: float
    bias: float
    spread: float


# The coarser of the stored and the computing dtype decides, as in diagnosis.py. How they were found: docs/verify.md.
_LIMITS = {  # coarsest first
    "bf16": Limits(0.002, 0.0028, 0.035),
    "fp16": Limits(0.0004, 0.0005, 0.008),
    "fp32": Limits(0.0002, 0.0002, 0.003),
}


def limits_for(dtype: str, compute_dtype: str) -> Limits:
    """For latents stored as ``dtype`` ("fp32", "fp16", "bf16") of a network that computes in ``compute_dtype``."""
    return next(limits for name, limits in _LIMITS.items() if name in (dtype, compute_dtype))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over the samples, and by how much it may be off at the confidence asked for."""

    value: float
    margin: float

    def beyond(self, limit: float) -> bool:
        """Whether the true mean lies beyond the limit, on either side of 0, as far as the samples can tell."""
        return abs(self.value) - self.margin > limit


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Means over ``num_samples``: ``gain`` (minus 1) of all channels together, ``gains`` and ``biases`` by channel
    (biases relative to the root mean square of all latents), ``spread`` and ``spreads`` (relative to the same)."""

    num_samples: int
    gain: Estimate
    gains: list[Estimate]
    biases: list[Estimate]
    spread: float
    spreads: list[float]


class Differences:
    """Sums of ``add``ed samples, a few numbers for each channel and sample."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []  # of each sample [5, c]

    def add(self, stored: Tensor, fresh: Tensor) -> None:
        """Take in one sample: both latents [c, h, w], as stored."""
        right = fresh.double().flatten(1)
        off = stored.double().flatten(1) - right
        rows = (off, off * right, off.square(), right.square(), torch.ones_like(off))
        self._sums.append(torch.stack([row.sum(1) for row in rows]))

    def aggregate(self) -> Aggregate | None:
        """The means; None for fewer than LEAST_SAMPLES, or where all latents are 0."""
        count = len(self._sums)
        if count < LEAST_SAMPLES:
            return None
        off, product, square, power, cells = torch.stack(self._sums).unbind(1)  # [N, c] each
        rms = float((power.sum() / cells.sum()).sqrt())
        if not rms > 0:
            return None
        channels = off.shape[1]
        times = _times_the_error(count, tests=2 * channels + 1)
        root = (square.sum(0) / cells.sum(0)).sqrt() / rms
        return Aggregate(
            num_samples=count,
            gain=_ratio(product.sum(1), power.sum(1), times),
            gains=[_ratio(product[:, channel], power[:, channel], times) for channel in range(channels)],
            biases=[_ratio(off[:, channel] / rms, cells[:, channel], times) for channel in range(channels)],
            spread=float((square.sum() / power.sum()).sqrt()),
            spreads=root.tolist(),
        )


def judge(found: Aggregate, limits: Limits) -> Iterator[str]:
    """What of the means rounding doesn't explain, a line each, as the end of a sentence on the latents."""
    sure = f"at {CONFIDENCE:.1%} confidence over {found.num_samples} samples"
    if found.gain.beyond(limits.gain):
        factor, margin = 1 + found.gain.value, found.gain.margin
        yield f"are {factor:.4f} (+-{margin:.4f}) times those of their images, {sure}; rounding explains {limits.gain}"
    else:
        wrong = [channel for channel, gain in enumerate(found.gains) if gain.beyond(2 * limits.gain)]
        if wrong:
            worst = max(wrong, key=lambda channel: abs(found.gains[channel].value))
            gain = found.gains[worst]
            yield (
                f"are off by a factor in {_channels(wrong)}: in channel {worst} by {1 + gain.value:.4f} "
                f"(+-{gain.margin:.4f}), {sure}"
            )
    wrong = [channel for channel, bias in enumerate(found.biases) if bias.beyond(limits.bias)]
    if wrong:
        worst = max(wrong, key=lambda channel: abs(found.biases[channel].value))
        bias = found.biases[worst]
        yield (
            f"are off by a constant in {_channels(wrong)}: in channel {worst} by {bias.value:+.4f} "
            f"(+-{bias.margin:.4f}) of their root mean square, {sure}; rounding explains {limits.bias}"
        )
    noisy = [channel for channel, spread in enumerate(found.spreads) if spread > 2 * limits.spread]
    if found.spread > limits.spread or noisy:
        where = "" if found.spread > limits.spread else f" in {_channels(noisy)}"
        amount = found.spread if found.spread > limits.spread else max(found.spreads)
        yield (
            f"differ by {amount:.2%} on average{where} over {found.num_samples} samples, where rounding explains "
            f"{limits.spread:.1%}: other pixels (another resize filter, lossy copies), noise, or other arithmetic"
        )


def _ratio(above: Tensor, below: Tensor, times: float) -> Estimate:
    """The ratio of two sums over the samples [N], and ``times`` its standard error."""
    total, count = float(below.sum()), len(below)
    if total <= 0:
        return Estimate(0.0, math.inf)
    value = float(above.sum()) / total
    error = float((above - value * below).square().sum()) * count / (count - 1)
    return Estimate(value, times * math.sqrt(error) / total)


def _times_the_error(count: int, tests: int) -> float:
    """How many standard errors a mean of ``count`` samples may be off when ``tests`` of them must all hold at
    CONFIDENCE: the quantile of Student's t, by its expansion in 1/(count - 1) (Abramowitz and Stegun 26.7.5)."""
    z, nu = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * tests)), count - 1
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / nu + second / nu**2 + third / nu**3


def _channels(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"channel{'s' if len(numbers) > 1 else ''} {shown}{more}"
