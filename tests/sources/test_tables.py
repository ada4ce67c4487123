"""Tables of paths and URLs: delimiters, quotes, encodings, repeated images, and files that change under them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcae_cache.errors import SourceError
from dcae_cache.records import Notes, Part, Sample
from dcae_cache.sources import SourceOptions, open_source
from helpers.file_server import serve


def read(uri: Path, **options: Any) -> dict[str, Sample]:
    source = open_source(str(uri), SourceOptions(**options))
    refs = list(source.read(Part(0, tuple(source.entries()))))
    found = {ref.key: ref.load() for ref in refs}
    for ref in refs:
        sample = found[ref.key]
        assert ref.notes() == Notes(sample.caption, sample.label, sample.attributes)
    counts = source.counts().total()
    assert counts.found == counts.images + counts.notes + counts.ignored.total()
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t")])
def test_the_delimiter_is_found(root: Path, name: str, delimiter: str) -> None:
    cells = [["path", "text"], ["a.jpg", '"x, y; z"'], ["b.jpg", "plain"]]
    (root / name).write_text("\n".join(map(delimiter.join, cells)))
    found = read(root / name)
    assert [sample.caption for sample in found.values()] == ["x, y; z", "plain"]
    assert read(root / name, delimiter="tab" if delimiter == "\t" else delimiter).keys() == found.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,text\na.jpg,one, two\nb.jpg,x\n", r"t\.csv, line 2: 3 cells, where the header has 2.*`delimiter`"),
        ("path,text\na.jpg,x\n\nb.jpg\n", r"line 4: 1 cells, where the header has 2"),
        ('path,text\na.jpg,x\nb.jpg,"open\nc.jpg,y\n', r"line 3: .*\(the row ends in line 4\).*written twice"),
        ('path,text\na.jpg,"one" two\n', r"line 2: .*written twice"),
    ],
)
def test_rows_that_do_not_fit_are_named_by_their_line(root: Path, text: str, said: str) -> None:
    (root / "t.csv").write_text(text)
    with pytest.raises(SourceError, match=said):
        read(root / "t.csv")


def test_a_bad_line_of_a_jsonl_is_named(root: Path) -> None:
    (root / "t.jsonl").write_text('{"path": "a.jpg"}\n\n\n{"path": "b.jpg"\n')
    with pytest.raises(SourceError, match=r"t\.jsonl, line 4: no JSON"):
        read(root / "t.jsonl")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_table_in_another_encoding(root: Path, name: str) -> None:
    rows = [{"path": "a.jpg", "text": "café"}, {"path": "b.jpg", "text": "x"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows] if name == "t.jsonl" else ["path,text", "a.jpg,café"]
    (root / name).write_text("\n".join(lines), encoding="cp1252")
    with pytest.raises(SourceError, match=rf"{name}, line [12]: it is no UTF-8, .*`caption_encoding`"):
        read(root / name)
    assert read(root / name, caption_encoding="cp1252")["a"].caption == "café"
    (root / name).write_text("\n".join(lines), encoding="utf-16")
    with pytest.raises(SourceError, match=r"line 1: it is UTF-16"):
        read(root / name)


def test_an_image_that_several_rows_name_is_one_sample_with_all_captions(root: Path) -> None:
    rows = [("a.jpg", "one"), ("b.jpg", "other"), ("a.jpg", "two"), ("a.jpg", "one"), ("c.jpg", "last")]
    (root / "t.jsonl").write_text("\n".join(json.dumps({"path": path, "text": text, "n": 1}) for path, text in rows))
    pq.write_table(
        pa.table({"path": [r[0] for r in rows], "text": [r[1] for r in rows], "n": [1] * 5}), root / "t.parquet"
    )
    for name in ("t.jsonl", "t.parquet"):
        found = read(root / name)
        assert list(found) == ["a", "b", "c"]
        assert (found["a"].caption, found["a"].attributes) == ("one", {"n": 1, "captions": ["one", "two"]})
        assert (found["b"].caption, found["b"].attributes) == ("other", {"n": 1})
        source = open_source(str(root / name))
        entries = list(source.entries())
        assert [entry.location for entry in entries] == ["0+2+3", "1", "4"]
        counts = source.counts().total()
        assert (counts.found, counts.images, counts.merged, counts.first_merged) == (5, 3, 2, "a.jpg")
    assert [entry.key for entry in open_source(str(root / "t.jsonl")).entries(2)] == ["a", "b"]


def test_size_and_time_of_local_images_are_part_of_the_plan(root: Path) -> None:
    (root / "t.csv").write_text("path,text\na.jpg,x\nb.jpg,y\ngone.jpg,z\n")

    def entries() -> list[tuple[int, int]]:
        return [(entry.num_bytes, entry.mtime_ns) for entry in open_source(str(root / "t.csv")).entries()]

    before = entries()
    assert [num_bytes for num_bytes, _ in before] == [5, 5, -1]
    assert entries() == before
    (root / "a.jpg").write_bytes(b"longer than it was")
    os.utime(root / "b.jpg", ns=(1, 1))
    after = entries()
    assert after[0][0] == 18
    assert after[1] != before[1]
    assert after[2] == before[2]


@pytest.mark.parametrize("columns", [("URL", "TEXT"), ("url", "caption"), ("image_url", "Prompt")])
@pytest.mark.parametrize("files", [1, 2])
def test_parquet_files_of_urls_are_fetched(
    tmp_path: Path, columns: tuple[str, str], files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")
    (tmp_path / "web").mkdir()
    (tmp_path / "data").mkdir()
    with serve(tmp_path / "web") as server:
        for number in range(files):
            (tmp_path / f"web/{number}.jpg").write_bytes(b"%d" % number)
            table = pa.table({columns[0]: [f"{server.url}/{number}.jpg"], columns[1]: [f"text {number}"]})
            pq.write_table(table, tmp_path / f"data/{number}.parquet")
        found = read(tmp_path / "data")
    assert [sample.data for sample in found.values()] == [b"%d" % number for number in range(files)]
    assert [sample.caption for sample in found.values()] == [f"text {number}" for number in range(files)]
