"""One .npy a sample in a folder for each class, as efficientvit's and DC-Gen's class-conditional trainers read them.

    <class>/<name>.npy      float32 [c, h, w], scaled

torchvision's DatasetFolder reads them: a class is the place of its folder among the sorted names, so every class must
be there, and folders that are numbers are filled with zeros in front. Where every key is "class/name", files are named
by it, as those trainers' own tools name them; else by the key's last piece and the sample's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..text import whole_number
from .exporter import Exporter
from .labels import class_numbers
from .samples import ExportSample
from .tars import npy

_UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_LONGEST_NAME = 200  # bytes


class NpyExporter(Exporter):
    """See the module."""

    name = "npy"
    values = "scaled"
    largest_shard = 2_000

    def check(self) -> None:
        self.only_square()
        numbers = class_numbers(self.facts, self.name)
        lacking = self._lacking(numbers)
        if lacking is not None:
            raise UsageError(
                f"{self.name} numbers classes by their folders, and no chosen sample has the label {lacking}: all "
                "classes behind it would shift. Choose samples of every class."
            )
        for label in numbers:
            if "/" in label or "\x00" in label or label.startswith(".") or len(label.encode()) > _LONGEST_NAME:
                raise UsageError(f"{self.name} calls folders by labels, and none can be called {label!r}.")

    def write(self, folder: Path, shard: int, samples: Iterable[ExportSample]) -> dict[str, Any]:
        count = 0
        for sample in samples:
            path = folder / self._path(sample)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(npy(sample.latents))
            count += 1
        return {"num_samples": count}

    def finish(self, folder: Path, shards: Sequence[Mapping[str, Any]]) -> str:
        return (
            f"efficientvit and DC-Gen: data provider latent_imagenet with data_dir {folder.resolve()}. Values are "
            f"scaled: give sampling the scaling_factor {self.facts.scaling_factor:g}, which it divides by."
        )

    def _lacking(self, numbers: Mapping[str, int]) -> str | int | None:
        """The first class without a sample that has others behind it."""
        there = set(numbers.values())
        missing = next((number for number in range(max(there)) if number not in there), None)
        if missing is None or whole_number(next(iter(numbers))) is not None:
            return missing
        return self.facts.all_labels[missing]

    def _path(self, sample: ExportSample) -> str:
        assert sample.label is not None, "checked before"
        folder = sample.label.zfill(self._digits)
        name = sample.key.rpartition("/")[2]
        if self.facts.keys_are_paths:
            return f"{folder}/{name}.npy"
        safe = _UNSAFE.sub("_", name).encode()[:_LONGEST_NAME].decode(errors="ignore")
        return f"{folder}/{safe}-{sample.number:09d}.npy"

    @cached_property
    def _digits(self) -> int:
        """Of the class numbers, so that their folders sort as they do; 0 for names."""
        numeric = all(whole_number(label) is not None for label in self.facts.labels)
        return max(map(len, self.facts.labels)) if numeric else 0
