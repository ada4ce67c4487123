"""Splits, empty and damaged files of Hugging Face datasets on disk."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from dcae_cache.errors import SourceError
from dcae_cache.records import Entry, Part
from helpers.hf_datasets import BYTES, make, parquet, raw_parquet, read, refusal, saved, source_of

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_of_a_saved_dict(tmp_path: Path, streaming: bool) -> None:
    path = saved(datasets.DatasetDict({"train": make(), "test": make(2)}), tmp_path / "d")
    found = read(source_of(path, split="test", streaming=streaming))
    assert [sample.data for sample in found] == BYTES[:2]
    assert all(sample.key.startswith("test/") for sample in found)
    assert found[0].source.startswith(f"{path}:test#")
    assert "splits train, test: choose one with `split`" in refusal(path, streaming=streaming)
    assert "no split val; it has: train, test" in refusal(path, split="val", streaming=streaming)


def test_what_has_one_split_has_no_other(everywhere: str) -> None:
    assert read(source_of(everywhere, split="train"), 1)[0].key == "00000000"
    assert "has no split test; it has: train" in refusal(everywhere, split="test")


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_dataset(tmp_path: Path, streaming: bool) -> None:
    assert "is empty" in refusal(saved(make().select([]), tmp_path / "d"), streaming=streaming)
    both = saved(datasets.DatasetDict({"train": make(), "test": make().select([])}), tmp_path / "both")
    assert "is empty" in refusal(both, split="test", streaming=streaming)
    assert len(read(source_of(both, split="train", streaming=streaming))) == 7
    (tmp_path / "files").mkdir()
    path = raw_parquet(tmp_path / "files/a.parquet", image=pa.array([], pa.binary()))
    assert "is empty" in refusal(path, streaming=streaming)
    raw_parquet(tmp_path / "files/b.parquet", image=BYTES)
    assert [sample.data for sample in read(source_of(tmp_path / "files", streaming=streaming))] == BYTES


def test_a_damaged_file(tmp_path: Path) -> None:
    parquet(tmp_path / "d/a.parquet")
    (tmp_path / "d/b.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    assert "Can't read" in refusal(tmp_path / "d")
    source = source_of(tmp_path / "d", streaming=True)
    good, bad = source.entries(10)
    assert len(list(source.read(Part(0, (good,))))) == 7
    with pytest.raises(SourceError, match=r"Data file 00001-of-00002 .*b\.parquet.* breaks off after 0 rows"):
        list(source.read(Part(1, (bad,))))
    with pytest.raises(SourceError, match="only 2 data files now"):
        list(source.read(Part(2, (Entry("00002-of-00003", "2", -1, 0),))))


def test_a_file_that_breaks_off_in_the_middle(tmp_path: Path) -> None:
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file:
        batches = [pa.record_batch({"image": [data * 50]}) for data in BYTES]
        with pa.ipc.new_stream(file, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole[: len(whole) // 2])
    source = source_of(tmp_path / "a.arrow", streaming=True)
    refs, got = source.read(Part(0, (Entry("00000-of-00001", "0", -1, 0),))), []
    with pytest.raises(SourceError, match=r"a\.arrow\) breaks off after [1-6] rows"):
        got.extend(refs)
    assert refusal(tmp_path / "a.arrow").startswith("Can't read")


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("nothing/*.parquet", "no .parquet or .arrow files"),
        ("gone.parquet", "no .parquet or .arrow files"),
        ("https://127.0.0.1:9/a.arrow", "a.arrow is not. Download them"),
        ("hf:", "expected hf:owner/name"),
        ("hf:a/b/c/d", "expected hf:owner/name"),
        ("hf:owner/name", "The Hub can't be reached for hf:owner/name"),
        ("hf:name", "The Hub can't be reached for hf:name"),
    ],
)
def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    for streaming in (False, True):
        assert named in refusal(uri, streaming=streaming)


def test_files_of_two_kinds_are_not_mixed(tmp_path: Path) -> None:
    parquet(tmp_path / "d/a.parquet")
    (tmp_path / "d/b.arrow").touch()
    assert "both .parquet and .arrow" in refusal(tmp_path / "d")
