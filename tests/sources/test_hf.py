"""Hugging Face datasets: every way they lie on disk, both ways to read them, and what is said of those that fail."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcae_cache.cache.plan import list_entries
from dcae_cache.errors import SampleSkipped, SourceError
from dcae_cache.records import Entry, Part, Sample
from dcae_cache.sources import SourceOptions
from dcae_cache.sources.hf import HuggingFaceSource, is_dataset_folder
from helpers.images import encoded_image

BYTES = [f"not an image at all {number}".encode() for number in range(7)]  # whoever decodes one fails


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and no network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


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


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "values", "keys"),
    [
        ("id", [30, 10, 20], ["30", "10", "20"]),
        ("key", ["c", "a/x", "b"], ["c", "a/x", "b"]),
        ("__key__", ["1", "2", "0"], ["1", "2", "0"]),
    ],
)
def test_keys_of_a_column(tmp_path: Path, name: str, values: list[Any], keys: list[str], streaming: bool) -> None:
    source = source_of(saved(make(3, **{name: values}), tmp_path / "d"), streaming=streaming)
    found = read(source)
    assert [sample.key for sample in found] == keys
    assert all(sample.attributes == {} for sample in found)
    if not streaming:
        assert [entry.key for entry in source.entries()] == keys


@pytest.mark.parametrize("values", [["a", "a", "b"], ["a", "", "b"], ["a", None, "b"], [1.5, 2.5, 3.5]])
def test_a_column_that_tells_no_rows_apart_gives_no_keys(tmp_path: Path, values: list[Any]) -> None:
    source = source_of(saved(make(3, id=values), tmp_path / "d"))
    assert [entry.key for entry in source.entries()] == ["00000000", "00000001", "00000002"]
    assert read(source)[0].attributes == {"id": values[0]}


def test_a_million_rows_list_in_seconds(tmp_path: Path) -> None:
    count = 1_000_000
    raw = pa.table({"id": pa.array(range(count)).cast(pa.string()), "image": pa.array([b"x"]).take([0] * count)})
    source = source_of(saved(datasets.Dataset(raw), tmp_path / "d"))
    listing = list_entries(source.entries())
    assert listing.num_rows == count
    assert listing["key"][-1].as_py() == "999999"
    assert len(list(source.entries(5))) == 5


def test_other_columns_are_attributes_in_json_form(tmp_path: Path) -> None:
    data = make(
        2,
        captions=[["one", "two"], ["three"]],
        when=[datetime(2024, 5, 1, 12), datetime(2024, 5, 2)],
        box=[{"x": 1, "y": [2.5]}, {"x": 3, "y": []}],
        mask=[b"secret", b"bytes"],
        more=[[{"bytes": b"1"}], []],
        kind=[1, -1],
        score=[0.5, None],
        ratio=[float("nan"), 1.0],
    ).remove_columns(["text"])
    data = data.cast_column("kind", datasets.ClassLabel(names=["a", "b"]))
    found = read(source_of(saved(data, tmp_path / "d")))
    assert found[0].attributes == {
        "captions": ["one", "two"],
        "when": "2024-05-01T12:00:00",
        "box": {"x": 1, "y": [2.5]},
        "kind": "b",
        "score": 0.5,
    }
    assert (found[0].caption, found[0].label) == ("one", "cat")
    assert "kind" not in found[1].attributes
    assert "score" not in found[1].attributes


def test_columns_can_be_named(tmp_path: Path) -> None:
    data = make(2, other=[b"first", b"second"], long=["a long one", "x"], kind=["k", "l"])
    path = saved(data, tmp_path / "d")
    first = read(source_of(path, image_column="other", caption_column="long", label_column="kind"))[0]
    assert (first.data, first.caption, first.label) == (b"first", "a long one", "k")
    assert first.attributes == {"text": "text 0", "label": "cat"}


def test_the_only_class_column_is_the_label(tmp_path: Path) -> None:
    data = make(3).rename_column("label", "species")
    found = read(source_of(saved(data, tmp_path / "d")))
    assert [sample.label for sample in found] == ["cat", "dog", "cat"]
    assert all(sample.attributes == {} for sample in found)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_as_plain_bytes_and_as_plain_structs(tmp_path: Path, streaming: bool) -> None:
    plain = raw_parquet(tmp_path / "a.parquet", jpg=BYTES[:2], score=[1, 2])
    assert [sample.data for sample in read(source_of(plain, streaming=streaming))] == BYTES[:2]
    struct = raw_parquet(tmp_path / "b.parquet", image=[{"bytes": data, "path": "x"} for data in BYTES[:2]])
    assert [sample.data for sample in read(source_of(struct, streaming=streaming))] == BYTES[:2]


@pytest.mark.parametrize("streaming", [False, True])
def test_images_as_paths(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"a")
    absolute = str(tmp_path / "images/a.jpg")
    os.mkfifo(tmp_path / "pipe")
    paths = ["images/a.jpg", absolute, "images/gone.jpg", None, "", "pipe", "http://127.0.0.1:9/a.jpg"]
    source = source_of(raw_parquet(tmp_path / "t.parquet", image_path=paths), streaming=streaming)
    outcome: list[bytes | str] = []
    for ref in source.read(Part(0, tuple(source.entries()))):
        try:
            outcome.append(ref.load().data)
        except SampleSkipped as skipped:
            outcome.append(skipped.reason)
    assert outcome == [b"a", b"a", "missing", "missing", "missing", "unreadable", "unreadable"]


def test_an_image_feature_without_bytes_is_read_from_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    data = make(3, image=[{"bytes": None, "path": str(tmp_path / "a.jpg")}, None, {"bytes": None, "path": "gone"}])
    pq.write_table(data.data.table.cast(data.features.arrow_schema), tmp_path / "a.parquet")  # saving would embed them
    source = source_of(tmp_path / "a.parquet")
    first, *others = source.read(Part(0, tuple(source.entries())))
    assert first.open().read() == first.load().data == b"a"
    for ref in others:
        with pytest.raises(SampleSkipped, match="missing"):
            ref.load()


def test_a_row_that_is_no_longer_what_was_planned_is_skipped(tmp_path: Path) -> None:
    source = source_of(saved(make(3, id=["a", "b", "c"]), tmp_path / "d"))
    planned = (Entry("a", "0", -1, 0), Entry("a", "1", -1, 0), Entry("z", "99", -1, 0))
    kept, moved, gone = source.read(Part(0, planned))
    assert kept.load().key == "a"
    for ref, reason in ((moved, "now has the key 'b'"), (gone, "only 3 rows")):
        with pytest.raises(SampleSkipped, match=reason):
            ref.load()


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


@pytest.mark.parametrize("option", ["image", "caption", "label"])
def test_a_wrong_column_is_answered_with_the_right_ones(tmp_path: Path, option: str) -> None:
    path = saved(make(2), tmp_path / "d")
    message = refusal(path, **{f"{option}_column": "nope"})
    assert message == (
        f"There is no column nope in {path}; it has: image, text, label. Choose one with --{option}-column."
    )


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    two = make(2, mask=[{"bytes": b"m", "path": None}] * 2).cast_column("mask", datasets.Image())
    assert read(source_of(saved(two, tmp_path / "a")))[0].data == BYTES[0]
    path = saved(two.rename_column("image", "picture"), tmp_path / "b")
    message = refusal(path)
    assert "picture, mask" in message or "mask, picture" in message
    assert "`image_column`" in message
    assert read(source_of(path, image_column="mask"))[0].data == b"m"
    none = raw_parquet(tmp_path / "c.parquet", text=["a"], score=[0.5])
    assert "it has: text (string), score (float64). Choose one with `image_column`" in refusal(none)
    assert "score (float64)" in refusal(none, image_column="score")


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
        ("https://127.0.0.1:9/a.parquet", "local disks"),
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


def test_which_folders_are_datasets(tmp_path: Path) -> None:
    assert is_dataset_folder(saved(make(2), tmp_path / "saved"))
    assert is_dataset_folder(saved(datasets.DatasetDict({"a": make(2)}), tmp_path / "dict"))
    assert is_dataset_folder(parquet(tmp_path / "files/a.PARQUET").parent)
    assert not is_dataset_folder(tmp_path)
    assert not is_dataset_folder(tmp_path / "nowhere")
    for name in ("a.jpg", "00000.tar"):  # a table beside images or tars tells of them
        (tmp_path / "files" / name).touch()
        assert not is_dataset_folder(tmp_path / "files")
        (tmp_path / "files" / name).unlink()
