"""Exact per-channel mean and standard deviation of latents, mergeable over parts. Knows nothing of files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who reads an index doesn't wait for torch
    from torch import Tensor

BELIEVABLE_STD = (0.5, 2.0)  # of scaled latents as a whole; the scaling factor is made to give 1 on photographs
_ROWS_AT_ONCE = 64  # a whole part in float64 would be its largest use of memory


@dataclass(frozen=True, slots=True)
class ChannelMoments:
    """Count, sum and sum of squares of every channel, in float64. ``count`` is values per channel."""

    count: int
    sum: tuple[float, ...]
    sum_of_squares: tuple[float, ...]

    @staticmethod
    def of(tensors: Iterable[Tensor], num_channels: int) -> ChannelMoments:
        """Moments over tensors [N, c, h, w] of any dtype, as stored."""
        import torch

        count = 0
        total = torch.zeros(num_channels, dtype=torch.float64)
        squares = torch.zeros(num_channels, dtype=torch.float64)
        for tensor in tensors:
            for first in range(0, len(tensor), _ROWS_AT_ONCE):
                values = tensor[first : first + _ROWS_AT_ONCE].to(torch.float64)
                count += values.numel() // num_channels
                total += values.sum(dim=(0, 2, 3))
                squares += values.square().sum(dim=(0, 2, 3))
        return ChannelMoments(count, tuple(total.tolist()), tuple(squares.tolist()))

    @staticmethod
    def merge(moments: Sequence[ChannelMoments], num_channels: int) -> ChannelMoments:
        """The moments of all together; of nothing: count 0."""
        sums = [math.fsum(part.sum[channel] for part in moments) for channel in range(num_channels)]
        squares = [math.fsum(part.sum_of_squares[channel] for part in moments) for channel in range(num_channels)]
        return ChannelMoments(sum(part.count for part in moments), tuple(sums), tuple(squares))

    @property
    def mean(self) -> list[float]:
        """Per channel; empty when nothing was counted."""
        return [total / self.count for total in self.sum] if self.count else []

    @property
    def std(self) -> list[float]:
        """Per channel, of the population (divided by the count, not count - 1); empty when nothing was counted."""
        return [
            math.sqrt(max(squares / self.count - mean * mean, 0.0))
            for squares, mean in zip(self.sum_of_squares if self.count else (), self.mean, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "sum": list(self.sum), "sum_of_squares": list(self.sum_of_squares)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> ChannelMoments:
        return ChannelMoments(values["count"], tuple(values["sum"]), tuple(values["sum_of_squares"]))


def overall_std(mean: Sequence[float], std: Sequence[float]) -> float:
    """The standard deviation over all values, from the means and standard deviations of equally large channels."""
    count = len(mean)
    centre = math.fsum(mean) / count
    return math.sqrt(math.fsum(s * s + (m - centre) ** 2 for m, s in zip(mean, std, strict=True)) / count)
