"""Where the marks of a plot go: geometry in a small coordinate system, drawn as SVG by the page's template.

Knows nothing of HTML, caches or scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 170  # of a plot, in its own units; text is 11 high
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 10, 24


@dataclass(frozen=True, slots=True)
class Mark:
    """A bar, or a channel's span, with what to say of it."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    """``marks`` in front of horizontal lines at ``rows``; ``columns`` label the x axis; ``line``: a vertical one."""

    title: str
    unit: str
    marks: list[Mark]
    rows: list[Tick]
    columns: list[Tick]
    line: Tick | None = None
    dots: tuple[Mark, ...] = ()
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def histogram(values: Sequence[float], title: str, unit: str, num_bins: int = 24) -> Plot | None:
    """How many values fall where; the mean as a vertical line. None without values."""
    if not values:
        return None
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    bins = min(num_bins, max(5, math.ceil(2 * len(values) ** (1 / 3)) + 2))
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    across, up = _scale(low, high, _LEFT, WIDTH - _RIGHT), _scale(0, max(counts), HEIGHT - _BOTTOM, _TOP)
    step = (high - low) / bins
    marks = [
        Mark(
            across(low + number * step) + 0.5,
            up(count),
            across(low + step) - across(low) - 1,
            up(0) - up(count),
            f"{count} between {low + number * step:.4g} and {low + (number + 1) * step:.4g} {unit}".rstrip(),
        )
        for number, count in enumerate(counts)
    ]
    mean = math.fsum(values) / len(values)
    return Plot(
        title,
        unit,
        marks,
        [Tick(up(at), f"{at:g}") for at in ticks(0, max(counts), 4) if at == int(at)],
        [Tick(across(at), f"{at:.6g}") for at in ticks(low, high, 5)],
        Tick(across(mean), f"mean {mean:.4g}"),
    )


def channels(mean: Sequence[float], std: Sequence[float], title: str) -> Plot | None:
    """Each channel's mean as a dot, with a bar of one standard deviation to either side."""
    if not mean:
        return None
    low = min(0.0, *(m - s for m, s in zip(mean, std, strict=True)))
    high = max(0.0, *(m + s for m, s in zip(mean, std, strict=True)))
    if high == low:
        low, high = -1.0, 1.0
    across, up = _scale(0, len(mean), _LEFT, WIDTH - _RIGHT), _scale(low, high, HEIGHT - _BOTTOM, _TOP)
    width = across(1) - across(0)
    bars, dots = [], []
    for number, (m, s) in enumerate(zip(mean, std, strict=True)):
        label = f"channel {number}: mean {m:+.3f}, std {s:.3f}"
        left, thick = across(number) + 0.15 * width, 0.7 * width
        bars.append(Mark(left, up(m + s), thick, max(0.5, up(m - s) - up(m + s)), label))
        dots.append(Mark(left, up(m) - 0.75, thick, 1.5, label))
    rows = [Tick(up(at), f"{at:g}") for at in ticks(low, high, 5)]
    every = [Tick(across(at + 0.5), f"{at:g}") for at in ticks(0, len(mean) - 1, 8) if at == int(at)]
    return Plot(title, "channel", bars, rows, every, None, tuple(dots))


def _scale(low: float, high: float, start: float, stop: float) -> _Scale:
    return _Scale(low, (stop - start) / (high - low), start)


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    factor: float
    start: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) * self.factor, 2)
