"""What a path is taken for: a folder of images, tars, a dataset or a table; and what is said of what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcae_cache.errors import SourceError, UsageError
from dcae_cache.records import Part
from dcae_cache.sources import SourceOptions, open_source, refuse_options_without_effect
from helpers.hf_datasets import make, parquet, refusal, saved
from helpers.tars import make_tar

pytestmark = pytest.mark.usefixtures("own_cache")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def keys(uri: Path | str, **options: Any) -> list[str]:
    source = open_source(str(uri), SourceOptions(**options))
    parts = [Part(number, (entry,)) for number, entry in enumerate(source.entries())]
    return [ref.key for part in parts for ref in source.read(part)]


def test_images_go_before_tables_beside_them(tmp_path: Path) -> None:
    """img2dataset's files layout, and class folders with a table of them."""
    root = touch(tmp_path, "00000/000000000.jpg", "00000/000000001.jpg", "00000_stats.json")
    (root / "00000/000000000.txt").write_text("a caption")
    pq.write_table(pa.table({"key": ["a"], "url": ["http://host/a.jpg"]}), root / "00000.parquet")
    source = open_source(str(root))
    assert [entry.key for entry in source.entries()] == ["00000/000000000", "00000/000000001"]
    counts = source.counts().listed
    assert counts is not None
    assert (counts.found, counts.images, counts.notes, counts.ignored) == (5, 2, 1, {".parquet": 1, ".json": 1})


def test_a_table_in_a_folder_of_images_can_be_named(tmp_path: Path) -> None:
    touch(tmp_path, "img/a.jpg", "img/b.jpg")
    (tmp_path / "list.csv").write_text("path,text\nimg/b.jpg,of the table\n")
    assert keys(tmp_path) == ["img/a", "img/b"]
    assert keys(tmp_path, table="list.csv") == ["img/b"]
    with pytest.raises(UsageError, match="`table` names a file in a folder"):
        open_source(str(tmp_path / "list.csv"), SourceOptions(table="list.csv"))


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_tars_in_a_folder_and_below_it(tmp_path: Path, suffix: str) -> None:
    mode = "w" if suffix == "tar" else "w:gz"
    make_tar(tmp_path / f"a/0.{suffix}", [("a.jpg", b"x")], mode)
    make_tar(tmp_path / f"b/0.{suffix}", [("b.jpg", b"x")], mode)
    touch(tmp_path, "README.md", "a/0_stats.json")
    assert keys(tmp_path) == ["a", "b"]
    make_tar(tmp_path / f"c.{suffix}", [("c.jpg", b"x")], mode)
    assert sorted(keys(tmp_path)) == ["a", "b", "c"]
    other = "tar.xz"
    touch(tmp_path, f"d.{other}")
    with pytest.raises(SourceError, match=r"tars of several kinds. Choose one: .*\*\.tar"):
        keys(tmp_path)


def test_a_repository_that_was_cloned_is_a_dataset(tmp_path: Path) -> None:
    parquet(tmp_path / "data/train-00000-of-00001.parquet", make(3))
    touch(tmp_path, "README.md", ".git/config")
    assert len(keys(tmp_path)) == 3


def test_splits_are_told_by_file_names(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    parquet(root / "data/train-00000-of-00002.parquet", make(3))
    parquet(root / "data/train-00001-of-00002.parquet", make(2))
    parquet(root / "data/test-00000-of-00001.parquet", make(1))
    for streaming in (False, True):
        train = keys(root, split="train", streaming=streaming)
        assert len(train) == 5
        assert all(key.startswith("train/") for key in train)
        assert len(keys(root, split="test", streaming=streaming)) == 1
    assert "has the splits test, train: choose one" in refusal(root).replace("train, test", "test, train")
    assert len(keys(f"{root}/data/*.parquet")) == 6
    assert len(keys(f"{root}/data/*.parquet", split="test")) == 1


def test_a_saved_dataset_is_one_whatever_lies_beside_it(tmp_path: Path) -> None:
    path = saved(make(2), tmp_path / "saved")
    touch(path, "preview.jpg")
    assert len(keys(path)) == 2
    both = saved(datasets.DatasetDict({"train": make(2), "test": make(1)}), tmp_path / "dict")
    assert len(keys(both, split="test")) == 1


def test_what_was_found_is_said_where_nothing_is_of_use(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "sub/c.pdf", "sub/d.txt", ".hidden", "noext")
    with pytest.raises(SourceError) as caught:
        list(open_source(str(tmp_path)).entries())
    message = str(caught.value)
    assert "No images found in" in message
    for part in ("2 .mp4", "1 .pdf", "1 hidden", "1 no suffix", "1 captions and the like"):
        assert part in message


@pytest.mark.parametrize(
    "option",
    [{"split": "train"}, {"streaming": True}, {"image_column": "image"}, {"key": "shard"}, {"key_split": "last"}],
)
def test_an_option_that_a_folder_cannot_honour_is_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    source = open_source(str(touch(tmp_path, "a.jpg")), SourceOptions(**option))
    with pytest.raises(UsageError, match=rf"`{next(iter(option))}` has no effect on a folder of images \(/"):
        refuse_options_without_effect(source, SourceOptions(**option))


def test_an_option_that_a_table_or_dataset_cannot_honour_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\na.jpg\n")
    parquet(tmp_path / "d.parquet", make(1))
    for name, option in (("t.csv", {"split": "x"}), ("t.csv", {"key": "shard"}), ("d.parquet", {"delimiter": ";"})):
        options = SourceOptions(**option)  # type: ignore[arg-type]
        with pytest.raises(
            UsageError, match=rf"`{next(iter(option))}` has no effect on a (table|Hugging Face dataset)"
        ):
            refuse_options_without_effect(open_source(str(tmp_path / name), options), options)


def test_columns_of_a_saved_webdataset_give_what_the_tar_gives(tmp_path: Path) -> None:
    """datasets.load_dataset("webdataset") names its columns by the suffixes of members."""
    json = [{"caption": "of the json", "llava": "long", "score": 0.5}, {"caption": None, "llava": None, "score": 1.0}]
    made = datasets.Dataset.from_dict(
        {
            "jpg": [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": None}],
            "txt": ["of the text", "second"],
            "json": json,
            "cls": [7, 3],
            "__key__": ["a", "b"],
            "__url__": ["x.tar", "x.tar"],
        }
    ).cast_column("jpg", datasets.Image())
    path = saved(made, tmp_path / "saved")
    members = [
        ("a.jpg", b"one"),
        ("a.txt", b"of the text"),
        ("a.json", b'{"caption": "of the json", "llava": "long"}'),
    ]
    tar = make_tar(tmp_path / "x.tar", [*members, ("a.cls", b"7")])

    def first(uri: Path, **options: Any) -> Any:
        source = open_source(str(uri), SourceOptions(**options))
        ref = next(iter(source.read(Part(0, tuple(source.entries())))))
        sample = ref.load()
        assert ref.notes().attributes == sample.attributes
        return sample.key, sample.caption, sample.label, {**sample.attributes, "score": 0.5}

    assert (
        first(path)
        == first(tar)
        == (
            "a",
            "of the text",
            "7",
            {"caption": "of the json", "llava": "long", "score": 0.5},
        )
    )
    for name in ("llava", "json.llava"):
        assert first(path, caption_column=name) == first(tar, caption_column=name)
        assert first(path, caption_column=name)[1] == "long"
    assert "no column nope" in refusal(path, caption_column="nope")


def test_fields_within_columns_can_be_named(tmp_path: Path) -> None:
    data = make(2, meta=[{"long": "one", "n": 1}, {"long": "two", "n": 2}])
    path = saved(data, tmp_path / "d")
    source = open_source(str(path), SourceOptions(caption_column="meta.long"))
    first = next(iter(source.read(Part(0, tuple(source.entries()))))).load()
    assert (first.caption, first.attributes) == ("one", {"text": "text 0", "meta": {"long": "one", "n": 1}})
