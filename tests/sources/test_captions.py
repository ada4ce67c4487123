"""Captions and labels of a folder: wherever people keep them, in whatever encoding, and what is said of the rest."""

from __future__ import annotations

import base64
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcae_cache.errors import SourceError, UsageError
from dcae_cache.ledger import Counts
from dcae_cache.records import Notes, Part
from dcae_cache.sources import SourceOptions, open_source


def images(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")


def read(root: Path, **options: Any) -> dict[str, Notes]:
    source = open_source(str(root), SourceOptions(**options))
    refs = list(source.read(Part(0, tuple(source.entries()))))
    for ref in refs:
        sample = ref.load()
        assert ref.notes() == Notes(sample.caption, sample.label, sample.attributes)
    return {ref.key: ref.notes() for ref in refs}


def listed(root: Path, **options: Any) -> Counts:
    source = open_source(str(root), SourceOptions(**options))
    assert list(source.entries())
    counts = source.counts().listed
    assert counts is not None
    return counts


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.caption", "a.tags", "a.jpg.txt", "a.jpg.CAPTION"])
def test_captions_beside_images_are_read_however_they_are_called(tmp_path: Path, name: str) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_text("a red boat\n")
    found = read(tmp_path)
    assert (found["a"].caption, found["a"].attributes) == ("a red boat", {})
    assert found["b"].caption is None


def test_of_several_captions_beside_an_image_one_is_chosen_and_none_is_lost(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("a boat")
    (tmp_path / "a.caption").write_text("a long boat")
    (tmp_path / "a.tags").write_text("boat, sea")
    assert read(tmp_path)["a"] == Notes("a boat", None, {"caption": "a long boat", "tags": "boat, sea"})
    for extension in ("caption", ".caption"):
        chosen = read(tmp_path, caption_extension=extension)["a"]
        assert chosen == Notes("a long boat", None, {})
    assert read(tmp_path, caption_column="tags")["a"].caption == "boat, sea"
    assert listed(tmp_path, caption_extension="caption").ignored == {".txt": 1, ".tags": 1}


def test_each_line_a_caption_where_it_is_said(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "a.txt").write_text("a boat\n\n  a red boat \r\n")
    (tmp_path / "b.txt").write_text("one line\n")
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / "a.caption").write_text("of another kind\nwhich counts less")
    (tmp_path / "a.cls").write_text("3\n4")
    (tmp_path / "c.json").write_text('["x", "y"]')
    assert read(tmp_path)["a"].caption == "a boat\n\n  a red boat"
    found = read(tmp_path, caption_lines=True)
    kept = {"captions": ["a boat", "a red boat"], "caption": "of another kind"}
    assert found["a"] == Notes("a boat", "3\n4", kept)
    assert found["b"] == Notes("one line", None, {})
    assert (found["c"].caption, found["c"].attributes) == ("x", {"captions": ["x", "y"]})


def test_the_field_that_was_named_is_the_caption_and_the_text_is_kept(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("from the text")
    (tmp_path / "a.json").write_text('{"caption": "short", "llava": "a long one", "deep": {"er": "inside"}}')
    found = read(tmp_path, caption_column="llava")["a"]
    assert found.caption == "a long one"
    assert found.attributes == {"caption": "short", "deep": {"er": "inside"}, "txt": "from the text"}
    assert read(tmp_path, caption_column="deep.er")["a"].caption == "inside"
    plain = read(tmp_path)["a"]
    assert (plain.caption, plain.attributes["caption"]) == ("from the text", "short")


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ("sub/0.jpg", "sub\\0.jpg"),
        ("0.jpg", "./0.jpg"),
        ("0.JPG", "0.jpg"),
        ("0.jpg", "0.JPG"),
        (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
        (unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
    ],
)
def test_rows_find_their_image_however_it_is_written(tmp_path: Path, image: str, named: str) -> None:
    images(tmp_path, image)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": named, "text": "found"}))
    (notes,) = read(tmp_path).values()
    assert notes.caption == "found"
    assert listed(tmp_path).unmatched == 0


def test_a_row_with_the_whole_path_finds_its_image(tmp_path: Path) -> None:
    images(tmp_path, "sub/0.jpg")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": f"{tmp_path}/sub/0.jpg", "text": "found"}))
    assert read(tmp_path)["sub/0"].caption == "found"


def test_rows_that_match_nothing_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "sub/b.jpg")
    rows = [{"file_name": name, "text": "x"} for name in ("a.jpg", "other/b.jpg", "/elsewhere/c.jpg")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sub/gone.txt").write_text("of no image")
    counts = listed(tmp_path)
    assert (counts.unmatched, counts.first_unmatched) == (2, "other/b.jpg")
    assert (counts.strays, counts.first_stray) == (1, "sub/gone.txt")


@pytest.mark.parametrize("option", ["caption_column", "label_column"])
def test_a_field_that_is_nowhere_is_an_error_that_names_those_there_are(tmp_path: Path, option: str) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text,style\na.jpg,x,oil\n")
    (tmp_path / "b.json").write_text('{"llava": "only the last has it"}')
    with pytest.raises(SourceError, match=rf"no field lava in .*; it has: text, style, llava\. Choose .* `{option}`"):
        read(tmp_path, **{option: "lava"})
    assert read(tmp_path, **{option: "llava"})


def test_a_metadata_parquet_and_lists_and_texts_in_json(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    table = {"file_name": ["a.jpg", "d.jpg"], "text": ["of a row", None], "n": [3, 4]}
    pq.write_table(pa.table(table), tmp_path / "metadata.parquet")
    (tmp_path / "b.json").write_text('["one", "two"]')
    (tmp_path / "c.json").write_text('"just this"')
    found = read(tmp_path)
    assert found["a"] == Notes("of a row", None, {"n": 3})
    assert found["b"] == Notes("one", None, {"captions": ["one", "two"]})
    assert found["c"] == Notes("just this", None, {})
    assert found["d"] == Notes(None, None, {"n": 4})


def test_metadata_of_kohya_and_of_edm2(tmp_path: Path) -> None:
    images(tmp_path, "k/a.jpg", "k/sub/b.png", "e/00000/img0.png")
    kohya = {"a": {"caption": "a cat", "tags": "cat, sofa"}, "sub/b": {"tags": "dog"}, "gone": {"tags": "x"}}
    (tmp_path / "k/meta_cap.json").write_text(json.dumps(kohya))
    (tmp_path / "e/dataset.json").write_text('{"labels": [["00000/img0.png", 6]]}')
    found = read(tmp_path)
    assert found["k/a"] == Notes("a cat", "k", {"tags": "cat, sofa"})
    assert found["k/sub/b"].attributes == {"tags": "dog"}
    assert found["e/00000/img0"].label == "6"
    counts = listed(tmp_path)
    assert (counts.unmatched, counts.first_unmatched, counts.notes) == (1, "k/gone", 2)
    (tmp_path / "meta.json").write_text('{"made": "by a tool"}')
    assert listed(tmp_path).ignored == {".json": 1}


def test_a_class_index_stands_beside_the_class_name(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "a.cls").write_text("207\n")
    (tmp_path / "a.json").write_text('{"label": "golden retriever"}')
    assert read(tmp_path)["a"] == Notes(None, "207", {"label": "golden retriever"})


def test_two_rows_of_one_image_give_a_list_of_captions(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    rows = [
        {"file_name": "a.jpg", "text": "first", "n": 1},
        {"file_name": "a.jpg", "text": "second", "n": 1},
        {"file_name": "b.jpg", "text": "only"},
        {"file_name": "b.jpg", "text": "only", "m": 2},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read(tmp_path)
    assert found["a"] == Notes("first", None, {"n": 1, "captions": ["first", "second"]})
    assert found["b"] == Notes("only", None, {"m": 2})
    assert listed(tmp_path).merged == 2


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        ("naïve café".encode("utf-8-sig"), "naïve café"),
        ("naïve café".encode("utf-16"), "naïve café"),
        ("naïve café".encode("utf-32"), "naïve café"),
        ("naïve café".encode("cp1252"), None),
        ("plain ascii".encode("utf-16-le"), None),
        ("一只红色的船".encode("gb18030"), None),
    ],
)
def test_a_caption_is_decoded_where_that_is_sure_and_its_bytes_are_kept_where_not(
    tmp_path: Path, data: bytes, caption: str | None
) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_bytes(data)
    notes = read(tmp_path)["a"]
    assert notes.caption == caption
    kept = notes.attributes.get("caption_bytes")
    assert (base64.b64decode(kept) if kept else None) == (None if caption else data)


@pytest.mark.parametrize("encoding", ["cp1252", "gb18030", "utf-16-le"])
def test_an_encoding_that_was_named_is_used_where_it_is_needed(tmp_path: Path, encoding: str) -> None:
    text = "naïve café" if encoding != "gb18030" else "一只红色的船"
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "b.txt").write_bytes(text.encode("utf-8-sig"))
    found = read(tmp_path, caption_encoding=encoding)
    assert found["a"].caption == found["b"].caption == text


def test_an_encoding_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`caption_encoding`: there is no encoding 'latin-nope'"):
        SourceOptions(caption_encoding="latin-nope")


def test_a_caption_that_is_not_a_number_is_none(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "a.json").write_text('{"caption": NaN, "text": "this one"}')
    assert read(tmp_path)["a"] == Notes("this one", None, {})
    (tmp_path / "a.json").write_text('{"caption": NaN}')
    assert read(tmp_path)["a"] == Notes(None, None, {})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg"}\n\n{"file_name": "a.jpg", }\n',
            r"metadata\.jsonl, line 3: no JSON",
        ),
        ("metadata.jsonl", '{"file_name": "a.jpg"}\n[1]\n', r"line 2: expected a JSON object, found list"),
        ("metadata.jsonl", '{"file_name": "a.jpg"}\n{"file": "b"}\n', r"line 2: no column file_name"),
        ("metadata.csv", "file_name,text\na.jpg,one, two\n", r"line 2: 3 cells, where the header has 2"),
        ("metadata.csv", 'file_name,text\na.jpg,"one\ntwo\n', r"line 2: .*quote"),
        ("metadata.csv", 'file_name,text\na.jpg,"one" two\n', r"line 2: .*A quote inside a cell is written"),
    ],
)
def test_a_bad_line_of_a_metadata_file_is_named_before_anything_is_read(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=said):
        list(open_source(str(tmp_path)).entries())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_is_found_or_named(tmp_path: Path, delimiter: str) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_text(f'file_name{delimiter}text\na.jpg{delimiter}"x{delimiter} ""y"""\n')
    assert read(tmp_path)["a"].caption == f'x{delimiter} "y"'
    assert read(tmp_path, delimiter=delimiter)["a"].caption == f'x{delimiter} "y"'


def test_a_caption_that_changes_changes_the_stamp_of_its_part(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.txt").write_text("one")

    def stamps(**options: Any) -> list[str]:
        source = open_source(str(tmp_path), SourceOptions(**options))
        return [source.notes_stamp([entry]) for entry in source.entries()]

    first = stamps()
    assert stamps() == first
    (tmp_path / "a.txt").write_text("another")
    edited = stamps()
    assert (edited[0] != first[0], edited[1] == first[1]) == (True, True)
    (tmp_path / "b.txt").write_text("new")
    assert stamps()[1] != first[1]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "n": 1}')
    assert stamps()[0] != edited[0]
    assert stamps(caption_column="txt")[1] != stamps()[1]
