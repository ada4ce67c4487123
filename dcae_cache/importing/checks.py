"""Can these be latents of that model, scaled as is said? Knows nothing of files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache.moments import BELIEVABLE_STD, ChannelMoments, overall_std
from ..errors import CacheError, UsageError
from ..records import Bucket
from .imported_recipe import StatedModel

_DEAD = 1e-3  # a channel's std below this, of scaled latents, carries nothing
_LIKELY = 1.5  # a scaled std up to this times away from 1 needs no second look


@dataclass(frozen=True, slots=True)
class Expected:
    """What the latents are said to be: of that model, and scaled or raw."""

    model: StatedModel
    scaled: bool

    def bucket_of(self, latents: Tensor) -> Bucket:
        """The size in pixels of the image that [c, h, w] are the latents of."""
        ratio = self.model.spatial_compression_ratio
        return Bucket(latents.shape[1] * ratio, latents.shape[2] * ratio)


def check_shape(latents: Tensor, expected: Expected, where: str) -> None:
    """Raise CacheError for what is no [c, h, w] of the model."""
    shape, channels = list(latents.shape), expected.model.latent_channels
    if len(shape) != 3 or min(shape) < 1:
        raise CacheError(f"{where} is of shape {shape}, expected [{channels}, h, w].")
    if shape[0] != channels:
        hint = ": mean and std together? They have to be parted" if shape[0] == 2 * channels else ""
        raise CacheError(f"{where} has {shape[0]} channels, {expected.model.name} gives {channels}{hint}.")


def as_stored(latents: Tensor, expected: Expected, dtype: torch.dtype, where: str) -> Tensor:
    """The latents scaled and in the stored dtype: the product is taken in float32 and rounded once. Raises CacheError
    where a value isn't finite."""
    values = latents.to(torch.float32)
    stored = (values if expected.scaled else values * expected.model.scaling_factor).to(dtype)
    if not torch.isfinite(stored).all():
        reason = "holds NaN or Inf" if not torch.isfinite(latents).all() else f"doesn't fit into {dtype}"
        raise CacheError(f"{where} {reason}.")
    return stored


def check_scale(moments: ChannelMoments, expected: Expected) -> None:
    """Raise UsageError where latents, scaled as is said, would have an unbelievable standard deviation, or where the
    other reading explains theirs clearly better. ``moments``: of the scaled latents that come of it."""
    if not moments.count:
        return
    std, factor = overall_std(moments.mean, moments.std), expected.model.scaling_factor
    found = std if expected.scaled else std / factor
    other = found * factor if expected.scaled else found
    low, high = BELIEVABLE_STD
    if _away(std) > math.log(_LIKELY) and (not low <= std <= high or _away(other) < _away(std)):
        name, (said, opposite) = expected.model.name, ("scaled", "raw") if expected.scaled else ("raw", "scaled")
        usual = 1 if expected.scaled else 1 / factor
        if low <= other <= high:
            better = f"Were they {opposite}, it would be {other:.3g} once scaled: is `scaled` wrong?"
        else:
            better = f"Is {name} the model that made them?"
        raise UsageError(
            f"The latents have a standard deviation of {found:.3g}; {said} ones of {name} have about {usual:.3g} "
            f"(scaling factor {factor:g}). {better} If all is right, import with `any_scale`. Nothing was "
            "finished."
        )
    _check_channels(moments.std)


def _check_channels(std: Sequence[float]) -> None:
    dead = [str(channel) for channel, value in enumerate(std) if value < _DEAD]
    if dead:
        raise UsageError(
            f"The latents hardly vary in channels {', '.join(dead)}: no DC-AE gives such. If they are right all the "
            "same, import with `any_scale`. Nothing was finished."
        )


def _away(std: float) -> float:
    """How far a standard deviation is from 1, the same for half and double."""
    return abs(math.log(std)) if std > 0 else math.inf
