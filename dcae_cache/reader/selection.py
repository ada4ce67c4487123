"""Some of a dataset's samples, or some of them more often than others. Knows nothing of batches or latents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..cache.expressions import Condition, evaluate, mask
from ..cache.rows_file import KEY_HASH, key_hash
from ..errors import UsageError
from .batch import mixed
from .pool import Bucket, Pool
from .ranges import Ranges


class Selection:
    """A choice of a dataset's samples, for BucketBatchSampler in place of the dataset. Each method gives a new one.

    Numbers stay the dataset's: the loader reads from the dataset itself. Memory: 8 bytes a chosen sample.
    """

    def __init__(self, dataset: Any, numbers: NDArray[np.int64] | None = None) -> None:
        self.dataset = dataset
        self.numbers = np.arange(len(dataset)) if numbers is None else numbers
        self._often: NDArray[np.float64] | None = None
        self._one_per_image = False

    def __len__(self) -> int:
        """How many different samples."""
        return len(self.numbers)

    def where(self, condition: str | pc.Expression) -> Selection:
        """Those for which a condition over the columns holds, as text (docs/training.md) or as a pyarrow expression
        over all columns. Where it can't be told, because a value is missing, it doesn't hold."""
        return self._of(mask(condition, self.dataset.table)[self.numbers])

    def split(self, start: float, stop: float, by: str = "key") -> Selection:
        """Those whose key's hash, as a number in [0, 1), is at least ``start`` and below ``stop``. A sample stays on
        its side however the cache grows. The hash is the first 8 bytes of the key's sha256.

        ``by``: another column (``label``, ``attributes.NAME``), whose value is hashed in the key's place, so that
        samples with the same value stay together; those without a value go by their key. Raises UsageError for an
        unknown column.
        """
        if not 0 <= start < stop <= 1:
            raise UsageError(f"a split goes from `start` to `stop` between 0 and 1, not from {start} to {stop}.")
        places = self._hashes(by)[self.numbers] >> np.uint64(11)
        share = places.astype(np.float64) * 2.0**-53
        return self._of((share >= start) & (share < stop))

    def _hashes(self, column: str) -> NDArray[np.uint64]:
        """Of every sample, the hash that a split goes by."""
        table = self.dataset.table([KEY_HASH] if column == "key" else [KEY_HASH, column])
        hashes: NDArray[np.uint64] = table[KEY_HASH].to_numpy()
        if column == "key":
            return hashes
        try:
            encoded = table[column].combine_chunks().dictionary_encode()
        except pa.ArrowNotImplementedError as error:
            raise UsageError(
                f"`by` is {column}, which holds {table[column].type}; a split goes by texts, numbers or booleans."
            ) from error
        values = np.array([key_hash(str(value)) for value in encoded.dictionary.to_pylist()], np.uint64)
        if not len(values):
            return hashes
        places = encoded.indices.fill_null(0).to_numpy()
        return np.where(encoded.indices.is_valid().to_numpy(zero_copy_only=False), values[places], hashes)

    def repeated(self, times: float | str | Sequence[float] | NDArray[Any]) -> Selection:
        """Each as often an epoch as said: a number for all, one for each of the selection, or an expression.

        2 is twice. 0.3 is in three epochs of ten, and 1.3 once in seven and twice in three of them: others in each
        epoch, as many in all up to one a bucket. Twice repeated multiplies.
        """
        if isinstance(times, str):
            values = evaluate(Condition.parse(times), self.dataset.table).to_numpy(zero_copy_only=False)[self.numbers]
        else:
            values = np.broadcast_to(np.asarray(times, np.float64), len(self.numbers))
        values = values.astype(np.float64)
        if not (values >= 0).all() or not np.isfinite(values).all():
            raise UsageError("samples are repeated a number of times that is at least 0 and finite for each of them.")
        chosen = self._of(np.ones(len(self.numbers), np.bool_))
        chosen._often = values if self._often is None else values * self._often
        return chosen

    def weighted(self, weights: str | Sequence[float] | NDArray[Any]) -> Selection:
        """As ``repeated``, in these proportions, in epochs that are as long as without."""
        chosen = self.repeated(weights)
        assert chosen._often is not None
        total = chosen._often.sum()
        if not total:
            raise UsageError("all `weights` are 0.")
        chosen._often = chosen._often * (len(chosen) / total)
        return chosen

    def one_per_image(self) -> Selection:
        """One of each image's samples an epoch, where it has several sizes or crops: another one in each epoch, drawn
        from seed, epoch and the image's key, all that are in this selection alike. How many samples a bucket has, and
        so how many batches there are, differs from epoch to epoch."""
        chosen = self._of(np.ones(len(self.numbers), np.bool_))
        chosen._one_per_image = True
        return chosen

    @property
    def far_away(self) -> bool:
        """As the dataset's."""
        return bool(getattr(self.dataset, "far_away", False))

    def prefetch(self, numbers: Sequence[int]) -> None:
        """As the dataset's: numbers stay the same."""
        self.dataset.prefetch(numbers)

    def buckets(self) -> dict[Bucket, Ranges]:
        """Of the whole dataset."""
        found: dict[Bucket, Ranges] = self.dataset.buckets()
        return found

    def pools(self, seed: int, epoch: int) -> dict[Bucket, Pool]:
        """The samples of an epoch, by bucket; repeated ones repeatedly."""
        chosen = np.arange(len(self.numbers))
        if self._one_per_image:
            chosen = one_of_each(self.dataset.table([KEY_HASH])[KEY_HASH].to_numpy()[self.numbers], seed, epoch)
        all_numbers, often = self.numbers[chosen], None if self._often is None else self._often[chosen]
        found = {}
        for place, (bucket, ranges) in enumerate(sorted(self.buckets().items())):
            run = np.searchsorted(ranges.starts, all_numbers, side="right") - 1
            inside = (run >= 0) & (all_numbers < (ranges.starts + ranges.counts)[run])
            numbers = all_numbers[inside]
            if often is not None:
                random = np.random.default_rng([seed, epoch, 3, place])
                numbers = np.repeat(numbers, times_this_epoch(often[inside], random))
            if len(numbers):
                found[bucket] = Pool.chosen(ranges, numbers)
        return found

    def identity(self) -> dict[str, Any]:
        """What tells this choice from others, for states."""
        digest = hashlib.sha256(self.numbers.tobytes())
        if self._often is not None:
            digest.update(self._often.tobytes())
        if self._one_per_image:
            digest.update(b"one per image")
        return {**self.dataset.identity(), "selection": digest.hexdigest()}

    def _of(self, kept: NDArray[np.bool_]) -> Selection:
        chosen = Selection(self.dataset, self.numbers[kept])
        chosen._often = None if self._often is None else self._often[kept]
        chosen._one_per_image = self._one_per_image
        return chosen


def one_of_each(images: NDArray[np.uint64], seed: int, epoch: int) -> NDArray[np.int64]:
    """One place, ascending, of each of the images [N], which are told apart by a hash of their key. Which one follows
    from the image, seed and epoch alone."""
    order = np.argsort(images, kind="stable")
    found, firsts, counts = np.unique(images[order], return_index=True, return_counts=True)
    key = hashlib.sha256(f"{seed} {epoch} one per image".encode()).digest()
    share = (mixed(found + np.uint64(int.from_bytes(key[:8]))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    places: NDArray[np.int64] = np.sort(order[firsts + (share * counts).astype(np.int64)])
    return places


def times_this_epoch(often: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Whole numbers whose mean over epochs is ``often``: each is that number rounded down or up, and their sum is that
    of ``often``, rounded down or up. (Systematic sampling in a random order: Madow, 1949.)"""
    order = random.permutation(len(often))
    whole = np.floor(often)
    ends = np.floor(np.cumsum((often - whole)[order]) + random.random())
    times = whole.astype(np.int64)
    times[order] += np.diff(ends, prepend=0).astype(np.int64)
    return times
