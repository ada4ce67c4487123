"""What a format can't hold is refused before anything is written, naming what it is and what would fit."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcae_cache.errors import MissingExtraError, UsageError
from dcae_cache.export.choice import choose, facts_of
from dcae_cache.export.exporter import ExportOptions, Facts
from dcae_cache.export.run import EXPORTERS, export_cache
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.records import Bucket
from helpers.images import encode, make_folder


@pytest.fixture(scope="module")
def facts(squares: Path) -> Facts:
    """Of a cache that every format but wids can hold."""
    dataset = LatentDataset(squares)
    return facts_of(dataset, choose(dataset, ExportOptions()))


TWO = {Bucket(128, 128): 4, Bucket(64, 256): 9}
OBLONG = {Bucket(64, 256): 9}
NO_LABELS: dict[str, Any] = {"labels": {}, "all_labels": [], "unlabelled": 20}
SOME_LABELS = {"unlabelled": 3}


def labelled(*labels: str, every: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"labels": dict.fromkeys(labels, 1), "all_labels": sorted(every or labels)}


@pytest.mark.parametrize(
    ("to", "changes", "message"),
    [
        ("npy", {"buckets": TWO}, r"2 buckets, such as 64x256 and 128x128.*bucket_height == 64.*`bucket` square"),
        ("npy", {"buckets": OBLONG}, r"square latents, and those are 64x256\. Encode with `bucket` square"),
        ("npy", NO_LABELS, r"wants a label for every sample, and 20 of 20 have none.*`label_column`.*`where`"),
        ("npy", SOME_LABELS, r"3 of 20 have none"),
        ("npy", labelled("0", "2"), r"no chosen sample has the label 1: all classes behind it would shift"),
        ("npy", labelled("a", "c", every=("a", "b", "c")), r"no chosen sample has the label b"),
        ("npy", labelled("a/b"), r"none can be called 'a/b'"),
        ("npy", labelled(".."), r"none can be called '\.\.'"),
        ("npy", labelled("x" * 300), r"none can be called 'xxx"),
        ("npy", labelled("1", "one"), r"all numbers or all names; .* has both, such as '1' and 'one'"),
        ("npy", labelled("1", "01", "0"), r"'1' and '01' are one"),
        ("lightningdit", labelled("99999999999"), r"class numbers up to 2147483647"),
        ("lightningdit", {"buckets": TWO}, r"latents of one size"),
        ("lightningdit", {"has_flips": False}, r"mirrored images, too, and .* has none\. Encode with `flip`"),
        ("lightningdit", SOME_LABELS, r"3 of 20 have none"),
        ("edm2", {"buckets": OBLONG}, r"`bucket` square"),
        ("edm2", SOME_LABELS, r"labels for all samples or for none, and 3 of 20"),
        (
            "wids",
            {"buckets": TWO},
            r"no table holds all buckets of .*: 64x256 is outside\. Encode with .*sana-512",
        ),
        ("mds", {"buckets": {Bucket(256, 256): 1, Bucket(512, 512): 1}}, r"256x256 and 512x512 have the same"),
    ],
)
def test_samples_that_a_format_cannot_hold(facts: Facts, to: str, changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EXPORTERS[to](replace(facts, **changes), ExportOptions()).check()


@pytest.mark.parametrize(
    ("to", "changes"),
    [
        ("npy", labelled("a", "b", every=("a", "b", "c"))),  # nothing is behind the one that is missing
        ("lightningdit", labelled("a", "c", every=("a", "b", "c"))),  # numbered over all of them
        ("lightningdit", {"buckets": OBLONG}),
        ("edm2", NO_LABELS),
        ("webdataset", {"buckets": TWO} | NO_LABELS),
        ("wids", {"buckets": {Bucket(512, 512): 1, Bucket(256, 1024): 2}}),
    ],
)
def test_samples_that_a_format_can_hold(facts: Facts, to: str, changes: Mapping[str, Any]) -> None:
    EXPORTERS[to](replace(facts, **changes), ExportOptions()).check()


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("npy", {"dtype": "fp16"}, r"takes `dtype` fp32, not fp16"),
        ("mds", {"dtype": "bf16"}, r"takes `dtype` fp32 or fp16"),
        ("wids", {"tensor": "safetensors"}, r"takes `tensor` npy"),
        ("webdataset", {"dtype": "bf16"}, r"can't hold bf16: use `tensor` safetensors"),
        ("nonsense", {}, r"no format 'nonsense'; there are wids, npy"),
        ("npy", {"where": "label == 'nobody'"}, r"no samples for which label == 'nobody' holds"),
        ("npy", {"where": "lable == 1"}, r"No column 'lable'"),
    ],
)
def test_options_that_a_format_cannot_follow(
    squares: Path, tmp_path: Path, to: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_cache(squares, to, tmp_path / "out", ExportOptions(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "`limit` must be at least 1"),
        ({"shard_size": -1}, "`shard_size` must be at least 1"),
        ({"shuffle": -1}, "`shuffle` must be at least 0"),
        ({"dtype": "fp8"}, "`dtype` is one of fp32, fp16, bf16, not 'fp8'"),
        ({"tensor": "pt"}, "`tensor` is one of npy, safetensors"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportOptions(**options)


def test_nothing_is_written_where_a_format_refuses(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Encode with `bucket` .*sana-512"):
        export_cache(squares, "wids", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mds_without_its_library(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "streaming":
            raise RuntimeError("operator torchvision::nms does not exist")  # torchvision beside another torch
        return found(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"nms does not exist.*pip install 'dcae-cache\[mds\]'"):
        export_cache(squares, "mds", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_incomplete_cache_and_missing_captions_are_pointed_out(squares: Path, tmp_path: Path) -> None:
    from dcae_cache.cache.index import load_index, save_index

    cache = tmp_path / "cache"
    shutil.copytree(squares, cache)
    save_index(cache, load_index(cache) | {"complete": False})
    summary = export_cache(cache, "webdataset", tmp_path / "out")
    assert "is not complete" in summary.cautions[0]


def test_names_of_files_where_keys_are_not_class_and_name(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", 6)
    deep = photos / "class0" / "more"
    deep.mkdir()
    (photos / "class0" / "img000.jpg").rename(deep / "img000.jpg")  # its key is class0/more/img000, its label more
    encode(photos, tmp_path / "cache", bucket="square")
    export_cache(tmp_path / "cache", "npy", tmp_path / "out")
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.npy"))
    assert names[0] == "class0/img003-000000000.npy"
    assert [name for name in names if name.startswith("more/")] == ["more/img000-000000001.npy"]
    assert len(names) == 6
