"""Some of a cache's samples, their images read again from the source and cropped as the recipe says.

    images = SourceImages(dataset, None, "cuda")    # None: where the cache says they were
    for batch in images.batches(numbers, found):    # batch.images are uint8 [N, 3, H, W] of one bucket each
        ...

What can't be had any more, or is no longer what was encoded, is told to ``found`` and left out. However many samples
are asked for, memory holds a few batches. Knows nothing of models or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..cache.integrity import Finding
from ..cache.known import is_known
from ..cache.parts import read_rows
from ..cache.plan import Plan, load_plan
from ..cache.recipe import IMPORTED, config_of
from ..compute.cores import default_workers
from ..compute.devices import auto_batch_size
from ..errors import SourceError, UsageError, VerificationError
from ..loading.batches import Batch, PartFailed, PartLoaded, load_batches
from ..loading.prefetch import Prefetch
from ..loading.rows import LoadSettings
from ..reader.dataset import LatentDataset
from ..records import Entry, Part, Row, SampleRef, part_name, part_number
from ..sources import Source, SourceOptions, open_source
from ..sources.base import NothingFound
from .moved_files import MovedFiles
from .recorded import RECORDED, differences

CROP_COLUMNS = ("bucket_height", "bucket_width", "resized_height", "resized_width", "crop_top", "crop_left")
COLUMNS = ("key", "image", "source_hash", *CROP_COLUMNS)  # what a dataset given to SourceImages must have
_MEND = "if it moved: dcae-cache verify CACHE --source SOURCE; else leave it be, or drop it with encode --prune"
_REFRESH = "run the same encode command with `refresh_metadata`, or name what was edited on purpose with `edited`"
# The hashes agree with what is wrong, so --repair would not see it.
DELETE_PART = "delete the files of that part and run the same encode command: it makes the part anew"
_AT_ONCE = 1024  # samples of a group, from as many parts as hold them

Found = Callable[[Finding], None]


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Samples of one bucket: their numbers in the dataset, their keys, and their images uint8 [N, 3, H, W]."""

    numbers: list[int]
    keys: list[str]
    images: Tensor


@dataclass(frozen=True, slots=True)
class _Group:
    """Samples that are read together, by key, the key of each one's image, and the slice of the source that they lie
    in."""

    numbers: Mapping[str, int]
    image_of: Mapping[str, str]
    part: Part

    @property
    def images(self) -> frozenset[str]:
        return frozenset(self.image_of.values())


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


class SourceImages:
    """The images that a cache was made from, where they are now.

    ``dataset`` must have COLUMNS. ``source``: where the images are, if not where the cache says. ``device_type``: of
    the device that the batches are for, which decides their size. ``allowed``: what the person
    allows (commands, the size of an image); its other fields are the cache's. ``edited``: columns that needn't be the
    source's. Raises VerificationError where the source is gone, or is one that only the cache names.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        source: str | None,
        device_type: str,
        allowed: SourceOptions | None = None,
        edited: Collection[str] = (),
    ) -> None:
        plan = load_plan(dataset.cache)
        if plan is None:
            raise VerificationError(f"{dataset.cache} has no plan.parquet, which says where its images were.")
        self._dataset, self._plan = dataset, plan
        self._source = _open(dataset.cache, source, plan, allowed or SourceOptions())
        self._named, self._edited = source is not None, edited
        self._moved = source is not None and self._source.entries_per_part is not None
        self._recorded = LatentDataset(dataset.cache, columns=RECORDED, allow_incomplete=True)
        if not isinstance(self._source, NothingFound):  # its captions are known once it is listed
            _list(self._source)
        self._places: MovedFiles | None = None
        self._listed: dict[str, Entry] | None = None
        if IMPORTED in plan.recipe:
            self._listed = _by_key(self._source, dataset)
        config = config_of(dataset.index["recipe"])
        self._settings = LoadSettings(
            config.fitting(dataset.spatial_compression_ratio),
            config.max_pixels,
            lambda bucket: auto_batch_size(bucket, device_type),
            default_workers(),
        )

    def batches(self, numbers: Sequence[int], found: Found) -> Iterator[SampleBatch]:
        """The images of the numbered samples (ascending), batch by batch, decoded ahead on threads.

        ``found`` hears of each sample that isn't there, can't be read, or has changed; it is in no batch.
        """
        for group in self._groups(numbers):
            seen: list[str] = []
            chosen = _Chosen(self._source, group.images, seen)
            with closing(Prefetch(load_batches(chosen, [group.part], self._settings), depth=2)) as loaded:
                for item in loaded:
                    if isinstance(item, Batch):
                        batch = self._checked(item, group, found)
                        if batch.numbers:
                            yield batch
                        continue
                    for finding in (*_left_out(group, item), *self._without_a_row(group, seen)):
                        found(finding)

    def reread(self, keys: Mapping[str, Collection[str]]) -> Iterator[Row]:
        """The rows that samples would get now, of part name -> keys: those of skipped ones, say."""
        for name, wanted in keys.items():
            part = self._plan.part(part_number(name))
            if self._source.entries_per_part is None:
                part = Part(part.number, tuple(entry for entry in part.entries if entry.key in wanted))
            elif self._moved:
                part = self._as_moved(part)
            chosen = _Chosen(self._source, wanted, [])
            for item in load_batches(chosen, [part], self._settings):
                if isinstance(item, PartLoaded):
                    yield from item.part.rows

    def _without_a_row(self, group: _Group, seen: Sequence[str]) -> Iterator[Finding]:
        """Of an input tar or data file, the samples met on the way that stand in no row of its part. (Where every
        entry is a sample, the plan knows them all: that is checked without the source.)"""
        if self._source.entries_per_part is None or not seen:
            return
        if {"chosen", "merged"} & set(self._plan.origin.options):  # made from a cache: some were left out on purpose
            return
        name = part_name(group.part.number)
        rows = read_rows(self._dataset.cache, name)
        known = set(pc.coalesce(rows["image"], rows["key"]).to_pylist())
        for key in dict.fromkeys(seen):
            if key not in known:
                yield Finding(key, f"is in the source, but in no row of {name}", DELETE_PART)

    def _groups(self, numbers: Sequence[int]) -> Iterator[_Group]:
        """Of a source whose entries are samples, the entries wanted, from many parts; else part by part."""
        wanted: dict[str, int] = {}
        image_of: dict[str, str] = {}
        entries: list[Entry] = []
        for name, run in groupby(numbers, self._dataset.part_of):
            part = self._plan.part(part_number(name))
            rows = [(number, self._dataset.describe(number)) for number in run]
            here = {row["key"]: number for number, row in rows}
            of_here = {row["key"]: row["image"] or row["key"] for _, row in rows}
            there = set(of_here.values())
            if self._listed is not None:
                part = Part(part.number, tuple(self._listed[key] for key in here if key in self._listed))
            if self._source.entries_per_part is not None:
                yield _Group(here, of_here, self._as_moved(part) if self._moved else part)
                continue
            wanted |= here
            image_of |= of_here
            entries += [entry for entry in part.entries if entry.key in there]
            if len(wanted) >= _AT_ONCE:
                yield _Group(wanted, image_of, Part(part.number, tuple(entries)))
                wanted, image_of, entries = {}, {}, []
        if wanted:
            yield _Group(wanted, image_of, Part(0, tuple(entries)))

    def _as_moved(self, part: Part) -> Part:
        """The part with its entries where the named source has them. (Files of a folder, and rows, are recorded
        relative to it.)"""
        self._places = self._places or MovedFiles(self._source)
        return self._places.part(part)

    def _checked(self, batch: Batch, group: _Group, found: Found) -> SampleBatch:
        """The batch's samples that are still what they were when they were encoded."""
        numbers, keys, images = [], [], []
        for slot, image in zip(batch.slots, batch.images, strict=True):
            assert isinstance(image, np.ndarray), "nothing is known, so nothing is copied"
            row = batch.part.rows[slot]
            number = group.numbers.get(row.key)
            if number is None:  # another size or crop of an image of which one was asked for
                continue
            changed = _what_changed(self._dataset.describe(number), row)
            if changed:
                found(
                    Finding(
                        row.key, changed, "run the same encode command with --recheck: it encodes changed images anew"
                    )
                )
                continue
            if self._listed is None:  # nothing is recorded of the images of imported latents
                recorded = self._recorded.describe(number)
                for what in differences(recorded, row, edited=self._edited, moved=self._named):
                    found(Finding(row.key, what, _REFRESH))
            numbers.append(number)
            keys.append(row.key)
            images.append(torch.from_numpy(image).permute(2, 0, 1))
        return SampleBatch(numbers, keys, torch.stack(images) if images else torch.empty(0))


class _Chosen:
    """A source of which only some samples are wanted: it is read no further than the last of them."""

    def __init__(self, source: Source, keys: Collection[str], seen: list[str]) -> None:
        self._source, self._keys, self._seen = source, keys, seen
        self.uri, self.entries_per_part = source.uri, source.entries_per_part

    def read(self, part: Part) -> Iterator[SampleRef]:
        left = len(self._keys)
        if not left:
            return
        for ref in self._source.read(part):
            self._seen.append(ref.key)
            if ref.key in self._keys:
                yield ref
                left -= 1
                if not left:
                    return

    def entries(self, limit: int | None = None) -> Iterator[Entry]:
        return self._source.entries(limit)

    def found(self) -> dict[str, Any]:
        return self._source.found()

    def adopt(self, found: Mapping[str, Any]) -> None:
        self._source.adopt(found)


def _by_key(source: Source, dataset: LatentDataset) -> dict[str, Entry]:
    """The entries of a source that has samples of an imported cache, whose plan names other files than images."""
    if source.entries_per_part is not None:
        raise VerificationError(
            f"The latents of {dataset.cache} were imported: their images are found by key in a folder, a table or a "
            f"dataset, not in {source.uri}."
        )
    entries = {entry.key: entry for entry in source.entries()}
    if not dataset.numbers_of(entries):
        raise VerificationError(
            f"{source.uri} has no image with a key of {dataset.cache}, such as {dataset.describe(0)['key']!r}: keys "
            "are paths without their suffix."
        )
    return entries


def _open(cache: Path, source: str | None, plan: Plan, allowed: SourceOptions) -> Source:
    recorded = plan.origin.uri
    if source is None:
        _refuse_unknown(cache, recorded, allowed)
    try:
        return open_source(source or recorded, SourceOptions.from_json(plan.origin.options, allowed))
    except (SourceError, UsageError) as error:
        raise VerificationError(
            f"{error} The images of this cache were there; say where they are now: `source`"
        ) from error


def _list(source: Source) -> None:
    try:
        for _ in source.entries():
            pass
    except SourceError as error:
        raise VerificationError(f"{error} Say where the images of this cache are now with `source`.") from error


def _refuse_unknown(cache: Path, recorded: str, allowed: SourceOptions) -> None:
    """A cache may come from anyone: where it says its images are is believed only of places that this person has named
    before, and its commands are run only where that is allowed."""
    if recorded.startswith("pipe:"):
        if not allowed.allow_pipe:
            raise VerificationError(
                f"{cache} says that its images come from the command {recorded}. It was not run. Pass `allow_pipe` if "
                "you trust it, or name the images yourself with `source`."
            )
    elif not is_known(recorded):
        raise VerificationError(
            f"{cache} says that its images are at {recorded}. It was not made here by you, so nothing was read there. "
            "Name the images yourself with `source`."
        )


def _left_out(group: _Group, end: PartLoaded | PartFailed) -> Iterator[Finding]:
    """Those of a group that came in no batch, each with its reason."""
    rows = end.part.rows
    for row in rows:
        if row.status == "skipped":
            gone = row.reason == "missing"
            what = "is not in the source any more" if gone else f"can't be read any more: {row.reason}"
            yield Finding(row.image_key, f"{what}: {row.detail}", _MEND)
    fitted = {row.image_key for row in rows if row.status == "ok"}
    for key in sorted(group.numbers.keys() - {row.key for row in rows}):
        if key not in group.images and group.image_of[key] in fitted:
            yield Finding(key, "is a size or a crop that its image doesn't have by the recipe", DELETE_PART)
    missing = group.images - {row.image_key for row in rows}
    if missing and isinstance(end, PartFailed):
        more = f"and {len(missing) - 1} more " if len(missing) > 1 else ""
        yield Finding(min(missing), f"{more}can't be read now: {end.error}", "try again when the source is there")
        return
    for key in sorted(missing):
        yield Finding(key, "is not in the source any more", _MEND)


def _what_changed(recorded: Mapping[str, Any], row: Row) -> str | None:
    """Why the image read now is not the one that was encoded, or None."""
    imported = not recorded["source_hash"]  # then neither the image nor its crop is known
    if not imported and row.source_hash != recorded["source_hash"]:
        return "its source has changed since it was encoded"
    names = CROP_COLUMNS[:2] if imported else CROP_COLUMNS
    now = tuple(getattr(row, name) for name in names)
    then = tuple(recorded[name] for name in names)
    if now != then:
        return f"its bucket and crop are {now} by the recipe, recorded {then}"
    return None
