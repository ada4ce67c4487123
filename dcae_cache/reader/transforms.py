"""Pieces that change batches: values of latents, mirrored images, sizes and labels. Captions are in captions.py.

    dataset = LatentDataset("latents").with_transforms(MirrorAtRandom(), ...)

Knows nothing of files or orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CacheError, UsageError
from .batch import Draws
from .transform import Transform


class _Described(Protocol):
    index: dict[str, Any]
    raw: bool
    scaling_factor: float

    def table(self, columns: Sequence[str]) -> Any: ...


class ToDtype(Transform):
    """Latents in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        return {**batch, "latents": batch["latents"].to(self.dtype)}


class Normalize(Transform):
    """Latents as (latents - mean) / std, per channel, in ``dtype``. ``inverse`` undoes it for sampling."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, dtype: torch.dtype = torch.float32) -> None:
        if len(mean) != len(std) or not mean:
            raise UsageError(f"`mean` and `std` have one value a channel, not {len(mean)} and {len(std)}.")
        if min(std) <= 0:
            raise UsageError(f"`std` of channel {std.index(min(std))} is {min(std)}: it must be above 0.")
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.dtype = dtype

    @staticmethod
    def of(dataset: _Described, *, dtype: torch.dtype = torch.float32) -> Normalize:
        """By the mean and std of the dataset's own cache, for latents as the dataset gives them (scaled or raw).

        Raises CacheError for a cache without samples.
        """
        statistics = dataset.index["statistics"]
        if not statistics["std"]:
            raise CacheError("The cache holds no samples, so it has no mean and std to normalize by.")
        unit = dataset.scaling_factor if dataset.raw else 1.0
        scaled = [[value / unit for value in statistics[name]] for name in ("mean", "std")]
        return Normalize(*scaled, dtype=dtype)

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        latents = (batch["latents"].to(torch.float32) - self.mean) / self.std
        return {**batch, "latents": latents.to(self.dtype)}

    def inverse(self, latents: Tensor) -> Tensor:
        """Normalized latents [..., c, h, w] as they were before, on their device, in fp32."""
        return latents.to(torch.float32) * self.std.to(latents.device) + self.mean.to(latents.device)


class MirrorAtRandom(Transform):
    """Latents of the mirrored image in place of the plain ones, for a share of the samples, others in each epoch.
    For caches made with ``--flip``. Adds "mirrored", a bool tensor [N]. Captions stay as they are."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = checked_share("share", share)

    def check(self, dataset: Any) -> None:
        if not dataset.index["recipe"]["flip"]:
            raise CacheError(f"{dataset.cache} holds no latents of mirrored images; they are made by encode --flip.")

    def mirrored(self, draws: Draws) -> NDArray[np.bool_]:
        return draws.uniform("mirror") < self.share

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        return {**batch, "mirrored": torch.from_numpy(self.mirrored(draws))}


class SizeConditioning(Transform):
    """What SDXL is conditioned on, as int64 tensors [N, 2], height (top) first: "original_size", "crop_top_left" and
    "target_size", in pixels; concatenated in this order they are its `add_time_ids` (Podell et al., 2023, 2.2)."""

    columns = ("height", "width", "crop_top", "crop_left", "bucket_height", "bucket_width")

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        pairs = {
            "original_size": ("height", "width"),
            "crop_top_left": ("crop_top", "crop_left"),
            "target_size": ("bucket_height", "bucket_width"),
        }
        return batch | {name: torch.stack([batch[one], batch[other]], 1) for name, (one, other) in pairs.items()}


class ClassLabels(Transform):
    """Labels as numbers: "label" becomes an int64 tensor [N], the place in ``names``; -1 where there is no label, or
    none of these."""

    def __init__(self, names: Sequence[str], *, column: str = "label") -> None:
        self.names = tuple(names)
        self.columns = (column,)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    @staticmethod
    def of(dataset: _Described, *, column: str = "label") -> ClassLabels:
        """All labels of the cache: sorted as numbers where all are whole numbers, else as text."""
        found = pc.unique(dataset.table([column])[column]).to_pylist()
        names = [str(name) for name in found if name not in (None, "")]
        numeric = all(name.isascii() and name.isdigit() for name in names)
        return ClassLabels(sorted(names, key=lambda name: (int(name) if numeric else 0, name)), column=column)

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        (column,) = self.columns
        values = batch[column].tolist() if isinstance(batch[column], Tensor) else batch[column]
        return {**batch, "label": torch.tensor([self._numbers.get(str(value), -1) for value in values])}


class Drop(Transform):
    """A share of the samples, others in each epoch, get ``value`` in place of what they have in ``column``: captions
    or labels for training without guidance."""

    def __init__(self, column: str = "caption", share: float = 0.1, *, value: Any = "") -> None:
        self.column, self.share, self.value = column, checked_share("share", share), value

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        if self.column not in batch:
            raise UsageError(f"There is no {self.column!r} to drop; the batch has {', '.join(batch)}.")
        dropped, values = draws.uniform(f"drop {self.column}") < self.share, batch[self.column]
        if isinstance(values, Tensor):
            shape = (-1, *[1] * (values.ndim - 1))
            kept = values.masked_fill(torch.from_numpy(dropped).view(shape), self.value)
            return {**batch, self.column: kept}
        both = zip(values, dropped.tolist(), strict=True)
        return {**batch, self.column: [self.value if gone else value for value, gone in both]}


def checked_share(name: str, share: float) -> float:
    """UsageError for what is no share of a whole."""
    if not 0 <= share <= 1:
        raise UsageError(f"`{name}` must be between 0 and 1, not {share}.")
    return share
