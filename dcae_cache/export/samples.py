"""What an exporter is given: samples of a cache in order, raw or scaled, with everything their rows say.

Knows nothing of formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..reader.dataset import LatentDataset
from ..records import CAPTIONS, VIEW_COLUMNS, Bucket

Values = Literal["raw", "scaled"]
_AT_ONCE = 256  # samples that are gathered together
_COLUMNS = ("key", "caption", "label", "attributes", "height", "width", *VIEW_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSample:
    """One sample. ``number`` counts all exported ones from 0; ``latents`` [c, h, w] are float32, raw or scaled as the
    format wants them; ``mirrored`` those of the mirrored image, where wanted. ``height`` and ``width`` are the
    original's, in pixels; those of the bucket where a cache doesn't know. ``attributes_json``: "" where there are
    none. ``view``: the image's key, the resolution and the number of the crop, where an image has several samples."""

    number: int
    key: str
    latents: Tensor
    mirrored: Tensor | None
    bucket: Bucket
    caption: str | None
    label: str | None
    attributes_json: str
    height: int
    width: int
    view: Mapping[str, Any] = field(default_factory=dict)

    @property
    def attributes(self) -> dict[str, Any]:
        """Whatever else the source said of the sample."""
        values: dict[str, Any] = json.loads(self.attributes_json) if self.attributes_json else {}
        return values

    def captions(self, attributes: dict[str, Any]) -> list[str]:
        """All captions: those kept as a list among the attributes, or the one there is."""
        listed = attributes.get(CAPTIONS)
        texts = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
        return texts or ([] if self.caption is None else [self.caption])


class Samples:
    """The chosen samples of a cache. ``numbers``: of the dataset, in the order of the export.

    Scaled latents are exactly the stored numbers. Raw ones are their quotients by the scaling factor in float32, as
    ``LatentDataset(raw=True)`` has them: rounded to nearest, so off by at most 1.2e-7 of themselves.
    """

    def __init__(
        self, dataset: LatentDataset, numbers: NDArray[np.int64], values: Values, *, with_mirrored: bool
    ) -> None:
        self._dataset, self._numbers, self._values, self._mirrored = dataset, numbers, values, with_mirrored

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, start: int, stop: int) -> Iterator[ExportSample]:
        """The samples from ``start`` up to ``stop``; a few hundred are in memory at a time."""
        for first in range(start, min(stop, len(self)), _AT_ONCE):
            yield from self._gathered(first, self._numbers[first : min(first + _AT_ONCE, stop)])

    def _gathered(self, first: int, numbers: NDArray[np.int64]) -> Iterator[ExportSample]:
        columns = self._dataset.rows.take(_COLUMNS, numbers)
        buckets = [Bucket(*self._dataset.bucket_of(int(number))) for number in numbers]
        latents = self._latents(numbers, buckets, mirrored=False)
        mirrored = self._latents(numbers, buckets, mirrored=True) if self._mirrored else None
        for place, bucket in enumerate(buckets):
            height, width = int(columns["height"][place]), int(columns["width"][place])
            yield ExportSample(
                number=first + place,
                key=columns["key"][place],
                latents=latents[place],
                mirrored=None if mirrored is None else mirrored[place],
                bucket=bucket,
                caption=columns["caption"][place] or None,
                label=columns["label"][place] or None,
                attributes_json=columns["attributes"][place],
                height=height if height > 0 else bucket.height,
                width=width if width > 0 else bucket.width,
                view=_view({name: columns[name][place] for name in VIEW_COLUMNS}),
            )

    def _latents(self, numbers: NDArray[np.int64], buckets: list[Bucket], *, mirrored: bool) -> list[Tensor]:
        """Each sample's latents; those of one bucket are gathered, and converted, together."""
        found: list[Tensor] = [torch.empty(0)] * len(buckets)
        for bucket in set(buckets):
            places = [place for place, other in enumerate(buckets) if other == bucket]
            stored = self._dataset.stack(numbers[places], flipped=np.full(len(places), mirrored))
            latents = stored.to(torch.float32)
            if self._values == "raw":
                latents = latents / self._dataset.scaling_factor
            for place, latent in zip(places, latents, strict=True):
                found[place] = latent
        return found


def _view(columns: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a sample from the others of its image; nothing where there are no others."""
    if not columns["image"]:
        return {}
    return {"image": columns["image"]} | {
        name: int(columns[name]) for name in ("resolution", "crop") if columns[name] >= 0
    }
