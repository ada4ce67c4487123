"""Which samples are exported, in which order, and what is known of them before a latent is read.

Works on whole columns; nothing here grows with a sample but a few numbers. Knows nothing of formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..cache.expressions import mask
from ..cache.moments import ChannelMoments
from ..errors import UsageError
from ..reader.batch import mixed
from ..reader.dataset import LatentDataset
from ..records import Bucket
from .exporter import ExportOptions, Facts

_LONGEST_NAME = 240  # bytes of a file's name, its suffix and a temporary one's left out


def choose(dataset: LatentDataset, options: ExportOptions) -> NDArray[np.int64]:
    """The numbers of the samples that the options choose, in the order of the export. UsageError where none is."""
    numbers = np.arange(len(dataset), dtype=np.int64)
    if options.shuffle is not None:
        seed = mixed(np.array([options.shuffle % 2**64], np.uint64))
        numbers = np.argsort(mixed(numbers.astype(np.uint64) + seed), kind="stable").astype(np.int64)
    if options.where is not None:
        numbers = numbers[mask(options.where, dataset.table)[numbers]]
    numbers = numbers[: options.limit]
    if not len(numbers):
        which = "" if options.where is None else f" for which {options.where} holds (`where`)"
        raise UsageError(f"{dataset.cache} holds no samples{which}.")
    return numbers


def facts_of(dataset: LatentDataset, numbers: NDArray[np.int64]) -> Facts:
    """What is known of the numbered samples."""
    lines = _Lines.of(dataset)
    codes = lines.label_codes[numbers]
    counts = np.bincount(codes[codes >= 0], minlength=len(lines.labels)).tolist()
    whole = len(numbers) == len(dataset)
    return Facts(
        cache=str(dataset.cache),
        model=dataset.index["model"]["name"],
        scaling_factor=dataset.scaling_factor,
        channels=dataset.latent_channels,
        ratio=dataset.spatial_compression_ratio,
        num_samples=len(numbers),
        buckets=_buckets(dataset, numbers),
        has_flips=dataset.index["recipe"]["flip"],
        labels={label: count for label, count in zip(lines.labels, counts, strict=True) if count},
        all_labels=sorted(lines.labels),
        unlabelled=int((codes < 0).sum()),
        uncaptioned=int((~lines.captioned[numbers]).sum()),
        keys_are_paths=bool(lines.keys_are_paths[numbers].all()),
        statistics=_raw_moments(dataset) if whole else None,
        resolutions=_resolutions(dataset, numbers),
    )


@dataclass(frozen=True, slots=True)
class _Lines:
    """A few bytes a sample. ``label_codes``: the place of its label in ``labels``, -1 where it has none."""

    labels: list[str]
    label_codes: NDArray[np.int64]
    captioned: NDArray[np.bool_]
    keys_are_paths: NDArray[np.bool_]

    @staticmethod
    def of(dataset: LatentDataset) -> _Lines:
        places: dict[str, int] = {}
        codes, captioned, paths = [], [], []
        for key, caption, label in _batches(dataset):
            encoded = pc.dictionary_encode(label)
            here = [places.setdefault(text, len(places)) if text else -1 for text in encoded.dictionary.to_pylist()]
            indices = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
            codes.append(np.array([*here, -1], np.int64)[indices])
            captioned.append(_true(pc.greater(pc.binary_length(caption), 0)))
            paths.append(_is_path(key, label))
        return _Lines(list(places), np.concatenate(codes), np.concatenate(captioned), np.concatenate(paths))


def _batches(dataset: LatentDataset) -> Iterator[tuple[pa.Array, pa.Array, pa.Array]]:
    for batch in dataset.table(("key", "caption", "label")).to_batches():
        yield batch["key"], batch["caption"], batch["label"]


def _is_path(key: pa.Array, label: pa.Array) -> NDArray[np.bool_]:
    """Whether a key is the sample's label, "/" and the name that a file can have."""
    name = pc.replace_substring_regex(key, "^.*/", "")
    whole = pc.equal(pc.binary_join_element_wise(label, name, pa.scalar("/", label.type)), key)
    short = pc.less_equal(pc.binary_length(name), _LONGEST_NAME)
    usable = pc.match_substring_regex(name, r"^[^.\x00][^\x00]*$")
    return _true(pc.and_(whole, pc.and_(short, usable)))


def _true(values: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return found


def _buckets(dataset: LatentDataset, numbers: NDArray[np.int64]) -> dict[Bucket, int]:
    layout = dataset.layout
    counts = np.bincount(np.searchsorted(layout.starts, numbers, side="right") - 1, minlength=len(layout.starts))
    found: dict[Bucket, int] = {}
    for height, width, count in zip(layout.heights.tolist(), layout.widths.tolist(), counts.tolist(), strict=True):
        if count:
            found[Bucket(height, width)] = found.get(Bucket(height, width), 0) + count
    return dict(sorted(found.items()))


def _resolutions(dataset: LatentDataset, numbers: NDArray[np.int64]) -> list[int]:
    """The several resolutions of the chosen samples, ascending; none where they have one."""
    if "resolutions" not in dataset.index["recipe"]:
        return []
    found = pc.unique(dataset.table(["resolution"])["resolution"].take(pa.array(numbers))).drop_null().to_pylist()
    return sorted(found) if len(found) > 1 else []


def _raw_moments(dataset: LatentDataset) -> ChannelMoments:
    """The cache's own statistics, of raw latents."""
    statistics, factor = dataset.index["statistics"], dataset.scaling_factor
    count = statistics["count"]
    mean = [value / factor for value in statistics["mean"]]
    squares = [(std / factor) ** 2 + value**2 for std, value in zip(statistics["std"], mean, strict=True)]
    return ChannelMoments(count, tuple(value * count for value in mean), tuple(square * count for square in squares))
