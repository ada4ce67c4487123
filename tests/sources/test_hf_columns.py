"""What the columns of a Hugging Face dataset become: key, image, caption, label, attributes."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from dcae_cache.errors import SampleSkipped
from dcae_cache.records import Part
from helpers.hf_datasets import BYTES, make, raw_parquet, read, refusal, saved, source_of

pytestmark = pytest.mark.usefixtures("own_cache")


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


@pytest.mark.parametrize("option", ["image", "caption", "label"])
def test_a_wrong_column_is_answered_with_the_right_ones(tmp_path: Path, option: str) -> None:
    path = saved(make(2), tmp_path / "d")
    message = refusal(path, **{f"{option}_column": "nope"})
    assert message == (
        f"There is no column nope in {path}; it has: image, text, label. Choose one with `{option}_column`."
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
