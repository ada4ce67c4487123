"""Small Hugging Face datasets whose images are none, and short ways to read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcae_cache.errors import SourceError
from dcae_cache.records import Part, Sample
from dcae_cache.sources import SourceOptions
from dcae_cache.sources.hf import HuggingFaceSource

BYTES = [f"not an image at all {number}".encode() for number in range(7)]  # whoever decodes one fails


def make(rows: int = 7, **columns: list[Any]) -> datasets.Dataset:
    """Images that are none, a caption each, two classes, and the columns given."""
    values = {
        "image": [{"bytes": data, "path": None} for data in BYTES[:rows]],
        "text": [f"text {number}" for number in range(rows)],
        "label": [number % 2 for number in range(rows)],
        **columns,
    }
    data = datasets.Dataset.from_dict(values)
    data = data.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    return data.cast_column("image", datasets.Image())


def saved(data: datasets.Dataset | datasets.DatasetDict, path: Path, **options: Any) -> Path:
    data.save_to_disk(str(path), **options)
    return path


def parquet(path: Path, data: datasets.Dataset | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (data or make()).to_parquet(str(path))
    return path


def raw_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def source_of(uri: Path | str, **options: Any) -> HuggingFaceSource:
    return HuggingFaceSource(str(uri), SourceOptions(**options))


def read(source: HuggingFaceSource, limit: int | None = None) -> list[Sample]:
    return [ref.load() for ref in source.read(Part(0, tuple(source.entries(limit))))]


def refusal(uri: Path | str, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(source_of(uri, **options))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message
