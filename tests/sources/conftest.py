"""What the tests of sources share: a cache of the datasets library of their own, and one dataset stored every way."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from helpers.hf_datasets import make, parquet, saved


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and no network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture(params=["saved", "dict", "parquet", "parquet folder", "glob", "arrow file", "arrow folder"])
def everywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same rows, stored in every way."""
    root = tmp_path / "data"
    if request.param == "saved":
        return str(saved(make(), root, num_shards=2))
    if request.param == "dict":
        return str(saved(datasets.DatasetDict({"train": make()}), root, num_shards={"train": 2}))
    if request.param == "parquet":
        return str(parquet(root / "a.parquet"))
    if request.param == "arrow file":
        return str(next(saved(make(), root).glob("*.arrow")))
    if request.param == "arrow folder":
        saved(make(), root, num_shards=2)
        for path in root.glob("*.json"):
            path.unlink()
        return str(root)
    parquet(root / "a[1].parquet", make().select(range(3)))
    parquet(root / "b.parquet", make().select(range(3, 7)))
    return str(root / "*.parquet") if request.param == "glob" else str(root)
