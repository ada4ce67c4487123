"""Datasets of the Hub: from the cache, and what is said where they can't be had."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import datasets
import pytest

from helpers.hf_datasets import BYTES, make, parquet, read, refusal, source_of

pytestmark = pytest.mark.usefixtures("own_cache")


def test_no_network(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for library in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{library}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's pauses between its tries
    message = refusal("hf:owner/name")
    assert "The Hub can't be reached for hf:owner/name" in message
    assert "Check the network" in message
    assert capfd.readouterr().err == ""


def fake_hub_cache(root: Path, splits: Mapping[str, int]) -> None:
    """What the library keeps of the dataset owner/name once it was downloaded."""
    files = {split: str(parquet(root / f"{split}.parquet", make(rows))) for split, rows in splits.items()}
    found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(root / "made"))
    target = root / "hf-cache/owner___name/small/0.0.0/abc"
    target.parent.mkdir(parents=True)
    Path(next(iter(found.cache_files.values()))[0]["filename"]).parent.rename(target)
    for split in splits:
        (target / f"parquet-{split}.arrow").rename(target / f"name-{split}.arrow")
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "name", "config_name": "small"}))


def test_a_downloaded_dataset_is_read_without_the_hub(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fake_hub_cache(tmp_path, {"train": 7, "test": 2})
    capfd.readouterr()
    for streaming in (False, True):
        found = read(source_of("hf:owner/name", split="test", streaming=streaming))
        assert [(sample.data, sample.label) for sample in found] == [(BYTES[0], "cat"), (BYTES[1], "dog")]
        assert found[0].source.startswith("hf:owner/name:test#")
        assert len(read(source_of("hf:owner/name/small", split="train", streaming=streaming), 3)) == 3
        assert "splits train, test" in refusal("hf:owner/name", streaming=streaming)
        assert "no split dev; it has: train, test" in refusal("hf:owner/name", split="dev", streaming=streaming)
        assert "['small']" in refusal("hf:owner/name/large", split="train", streaming=streaming)
    sliced = read(source_of("hf:owner/name", split="train[:3]"))
    assert [sample.key for sample in sliced] == [f"train[:3]/{row:08d}" for row in range(3)]
    first, second = (list(source_of("hf:owner/name", split="train").entries()) for _ in range(2))
    assert first == second
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found name.py"), "script of its own"),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'o/n' is a gated dataset on the Hub."),
            "Accept its terms on its page",
        ),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'o/n' doesn't exist"), "There is no dataset hf:o/n"),
        (
            ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']\nExample of usage:\n\t`load('x')`"),
            "['a', 'b']. Name one, as in",
        ),
        (ValueError("BuilderConfig 'c' not found. Available: ['a', 'b']"), "['a', 'b']"),
        (datasets.exceptions.DataFilesNotFoundError("No (supported) data files found in o/n"), "no data files"),
        (OSError("x" * 5000), "Can't read hf:o/n as a dataset"),
    ],
)
def test_what_the_library_raises_is_explained(monkeypatch: pytest.MonkeyPatch, error: Exception, named: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    monkeypatch.setattr("datasets.get_dataset_split_names", fail)
    for streaming in (False, True):
        message = refusal("hf:o/n", streaming=streaming)
        assert named in message
        assert "Example" not in message


def test_a_folder_of_that_name_is_not_taken_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    assert "in the current folder" in refusal("hf:owner/name")
