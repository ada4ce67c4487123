"""The worst, median and best of the samples that were decoded, as pictures to look at.

Their images are read, and their latents decoded, a second time: which ones they are is known only at the end, and
memory need not hold the others. Knows nothing of files or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..decode.cache_model import CacheModel
from ..reader.dataset import LatentDataset
from .source_images import SourceImages

PER_RANK = 3


@dataclass(frozen=True, slots=True)
class Picture:
    """A sample's image and what its stored latent decodes to, uint8 [3, H, W] each. ``rank`` is "worst", "median" or
    "best", by PSNR among the samples decoded."""

    key: str
    rank: str
    caption: str
    original: Tensor
    reconstruction: Tensor


def choose(ranked: Sequence[str], count: int = PER_RANK) -> dict[str, str]:
    """Key -> rank of up to ``count`` keys for each rank, none twice, of keys in ascending order of PSNR."""
    chosen: dict[str, str] = dict.fromkeys(ranked[:count], "worst")
    best = [key for key in reversed(ranked[-count:]) if key not in chosen]
    rest = [key for key in ranked if key not in chosen and key not in best]
    start = max(0, (len(rest) - count + 1) // 2)
    chosen |= dict.fromkeys(rest[start : start + count], "median")
    return chosen | dict.fromkeys(best, "best")


def take_pictures(
    dataset: LatentDataset, images: SourceImages, model: CacheModel, ranked: Mapping[str, int]
) -> list[Picture]:
    """Pictures of samples given as key -> number in ascending order of PSNR, worst first. One whose image is gone
    meanwhile is left out."""
    ranks = choose(list(ranked))
    captions = LatentDataset(dataset.cache, columns=("caption",), allow_incomplete=True)
    taken: dict[str, Picture] = {}
    for batch in images.batches(sorted(ranked[key] for key in ranks), lambda finding: None):
        decoded = model.decode(dataset.stack(batch.numbers))
        for number, key, original, ours in zip(batch.numbers, batch.keys, batch.images, decoded, strict=True):
            caption = captions.describe(number)["caption"]
            taken[key] = Picture(key, ranks[key], caption, original.clone(), ours.clone())
    return [taken[key] for key in ranks if key in taken]
