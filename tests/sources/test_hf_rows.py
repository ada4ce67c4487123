"""Rows of Hugging Face datasets: every way they lie on disk, both ways to read them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from dcae_cache.cache.listing import list_entries
from dcae_cache.errors import SampleSkipped
from dcae_cache.records import Entry, Part
from helpers.hf_datasets import BYTES, make, parquet, read, saved, source_of
from helpers.images import encoded_image

pytestmark = pytest.mark.usefixtures("own_cache")


def test_rows_in_order_with_what_is_said_of_them(everywhere: str) -> None:
    found = read(source_of(everywhere))
    assert [sample.key for sample in found] == [f"{row:08d}" for row in range(7)]
    assert [sample.data for sample in found] == BYTES
    assert [sample.caption for sample in found] == [f"text {row}" for row in range(7)]
    assert [sample.label for sample in found[:3]] == ["cat", "dog", "cat"]
    assert found[3].source == f"{os.path.abspath(everywhere)}#3"
    assert found[0].attributes == {}


def test_streaming_gives_the_same(everywhere: str) -> None:
    source = source_of(everywhere, streaming=True)
    entries = list(source.entries())
    assert source.entries_per_part == 1
    assert [entry.key for entry in entries] == [f"{n:05d}-of-{len(entries):05d}" for n in range(len(entries))]
    found = read(source)
    rows = read(source_of(everywhere))
    assert [(s.data, s.caption, s.label) for s in found] == [(s.data, s.caption, s.label) for s in rows]
    assert found[0].key == "00000/00000000"
    assert len({sample.key for sample in found}) == 7


@pytest.mark.parametrize("streaming", [False, True])
def test_limit(everywhere: str, streaming: bool) -> None:
    source = source_of(everywhere, streaming=streaming)
    for limit in (1, 3, 5, 7, 20):
        assert [sample.data for sample in read(source, limit)] == BYTES[:limit]
    assert [entry.max_samples for entry in source.entries(7)] == [None] * len(list(source.entries()))
    if not streaming:
        assert len(list(source.entries(3))) == 3


def test_a_relative_path_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "data/a.parquet")
    monkeypatch.chdir(tmp_path)
    for uri in ("data", "data/a.parquet", "data/*.parquet"):
        source = source_of(uri)
        assert source.uri == str(tmp_path / uri)
        assert len(read(source)) == 7
    assert source_of("hf:owner/name").uri == "hf:owner/name"


def test_samples_know_their_data_file(tmp_path: Path) -> None:
    parquet(tmp_path / "data/a.parquet", make(3))
    parquet(tmp_path / "data/b.parquet", make(2))
    for streaming in (False, True):
        found = read(source_of(tmp_path / "data", streaming=streaming))
        assert [sample.shard for sample in found] == ["a", "a", "a", "b", "b"]


def test_a_listing_is_the_same_at_the_next_opening(everywhere: str) -> None:
    for streaming in (False, True):
        first, second = (list(source_of(everywhere, streaming=streaming).entries()) for _ in range(2))
        assert first == second
        assert all(0 < entry.mtime_ns < 2**63 for entry in first)


def test_a_new_file_leaves_the_rows_of_the_others_as_they_were(tmp_path: Path) -> None:
    parquet(tmp_path / "data/a.parquet")
    before = list(source_of(tmp_path / "data").entries())
    parquet(tmp_path / "data/b.parquet")
    after = list(source_of(tmp_path / "data").entries())
    assert after[:7] == before
    os.utime(tmp_path / "data/b.parquet", ns=(1, 1))
    touched = list(source_of(tmp_path / "data").entries())
    assert touched[:7] == before
    assert all(old.mtime_ns != new.mtime_ns for old, new in zip(after[7:], touched[7:], strict=True))


def test_real_images_come_as_they_were_stored(tmp_path: Path) -> None:
    images = [encoded_image(40, 30, seed) for seed in range(3)]
    data = make(3, image=[{"bytes": image, "path": "x.jpg"} for image in images])
    assert [sample.data for sample in read(source_of(saved(data, tmp_path / "d")))] == images


def test_many_threads_read_one_dataset(tmp_path: Path) -> None:
    count = 400
    data = datasets.Dataset.from_dict({"image": [b"%d" % n * 500 for n in range(count)], "n": list(range(count))})
    source = source_of(saved(data, tmp_path / "d", num_shards=3))
    refs = list(source.read(Part(0, tuple(source.entries()))))
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda ref: ref.open().read(), refs))
        found = list(pool.map(lambda ref: ref.load(), refs * 3))
    for number, sample in enumerate(found):
        assert sample.data == opened[number % count] == b"%d" % (number % count) * 500
        assert sample.attributes == {"n": number % count}


def test_a_million_rows_list_in_seconds(tmp_path: Path) -> None:
    count = 1_000_000
    raw = pa.table({"id": pa.array(range(count)).cast(pa.string()), "image": pa.array([b"x"]).take([0] * count)})
    source = source_of(saved(datasets.Dataset(raw), tmp_path / "d"))
    listing = list_entries(source.entries())
    assert listing.num_rows == count
    assert listing.whole()["key"][-1].as_py() == "999999"
    assert len(list(source.entries(5))) == 5


def test_a_row_that_is_no_longer_what_was_planned_is_skipped(tmp_path: Path) -> None:
    source = source_of(saved(make(3, id=["a", "b", "c"]), tmp_path / "d"))
    planned = (Entry("a", "0", -1, 0), Entry("a", "1", -1, 0), Entry("z", "99", -1, 0))
    kept, moved, gone = source.read(Part(0, planned))
    assert kept.load().key == "a"
    for ref, reason in ((moved, "now has the key 'b'"), (gone, "only 3 rows")):
        with pytest.raises(SampleSkipped, match=reason):
            ref.load()
