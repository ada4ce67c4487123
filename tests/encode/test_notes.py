"""Captions that change: taken up by the same command, in tables alone, and never mixed in a part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dcae_cache.cache.parts import read_rows
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.sources import SourceOptions
from helpers.images import encoded_image, make_folder, tiny_config
from helpers.tars import make_tar, triples


def encode(source: Path, out: Path, *, reading: SourceOptions | None = None, **options: Any) -> Summary:
    settings = {"device": "cpu", "workers": 2, "part_size": 4, "batch_size": 4, **options}
    return encode_dataset(source, out, tiny_config(), RunOptions(**settings), source_options=reading)


def captions(out: Path) -> dict[str, str | None]:
    tables = [read_rows(out, path.stem) for path in sorted((out / "parts").glob("*.parquet"))]
    return {row["key"]: row["caption"] for table in tables for row in table.to_pylist()}


def shards(out: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "parts").glob("*.safetensors")}


def test_captions_edited_added_and_removed_are_taken_up(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "in", 8), tmp_path / "out"
    images = sorted(source.rglob("*.jpg"))
    for path in images[:4]:
        path.with_suffix(".txt").write_text("old")
    encode(source, out)
    before = shards(out)
    images[0].with_suffix(".txt").write_text("edited")
    images[1].with_suffix(".txt").unlink()
    images[5].with_suffix(".caption").write_text("added")
    summary = encode(source, out)
    assert (summary.device, summary.encoded, summary.refreshed) == (None, 0, 3)
    assert list(captions(out).values()) == ["edited", None, "old", "old", None, "added", None, None]
    assert (summary.ledger["with_caption"], summary.ledger["without_caption"]) == (4, 4)
    assert shards(out) == before
    assert encode(source, out).refreshed == 0


def test_a_neighbour_that_changes_does_not_mix_old_and_new(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "in", 4), tmp_path / "out"
    images = sorted(source.rglob("*.jpg"))
    for path in images:
        path.with_suffix(".txt").write_text("old")
    encode(source, out)
    for path in images:
        path.with_suffix(".txt").write_text("new")
    images[0].write_bytes(encoded_image(200, 100, seed=99))
    summary = encode(source, out)
    assert (summary.encoded, summary.copied) == (1, 3)
    assert set(captions(out).values()) == {"new"}


def test_rows_of_a_metadata_file_that_change_are_taken_up(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "in", 8), tmp_path / "out"
    name = "class0/img000.jpg"
    table = source / "metadata.csv"
    table.write_text(f"file_name,text\n{name},old\n")
    encode(source, out)
    table.write_text(f"file_name,text\n{name},new\n")
    assert encode(source, out).refreshed == 1
    assert captions(out)["class0/img000"] == "new"


def test_other_columns_asked_for_are_taken_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tar = make_tar(tmp_path / "a.tar", triples(0, 3))
    encode(tar, out)
    assert encode(tar, out, reading=SourceOptions(caption_column="status")).refreshed == 3
    assert set(captions(out).values()) == {"success"}
    assert encode(tar, out).refreshed == 3


def test_a_named_encoding_brings_back_what_was_kept(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "in", 2), tmp_path / "out"
    (source / "class0/img000.txt").write_bytes("café".encode("cp1252"))
    first = encode(source, out)
    assert (first.ledger["unread_captions"], captions(out)["class0/img000"]) == (1, None)
    again = encode(source, out, reading=SourceOptions(caption_encoding="cp1252"))
    assert (again.refreshed, again.ledger["unread_captions"]) == (1, 0)
    assert captions(out)["class0/img000"] == "café"


def test_a_lost_file_of_stamps_costs_nothing_but_reading(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "in", 4), tmp_path / "out"
    (source / "class0/img000.txt").write_text("old")
    encode(source, out)
    (out / "notes.json").unlink()
    (source / "class0/img000.txt").write_text("new")
    assert encode(source, out).refreshed == 1
    (out / "notes.json").write_text("no json")
    (out / "ledger.json").write_text("[]")
    assert encode(source, out).ledger["images"] == 4


@pytest.mark.parametrize("option", ["recheck", "repair"])
def test_an_image_that_changed_without_a_sign_is_found_when_asked_for(tmp_path: Path, option: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    make_folder(source, 8)
    path = source / "class0/img000.jpg"
    info = path.stat()
    encode(source, out)
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert encode(source, out).device is None
    summary = encode(source, out, **{option: True})
    assert (summary.encoded, summary.copied, summary.num_samples) == (1, 3, 8)
    assert encode(source, out, **{option: True}).device is None


def test_a_local_image_of_a_table_that_is_replaced_is_encoded_again(tmp_path: Path) -> None:
    make_folder(tmp_path, 3)
    names = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.jpg"))]
    (tmp_path / "t.csv").write_text("path\n" + "\n".join(names) + "\n")
    encode(tmp_path / "t.csv", tmp_path / "out")
    (tmp_path / names[1]).write_bytes(encoded_image(120, 200, seed=50))
    summary = encode(tmp_path / "t.csv", tmp_path / "out")
    assert (summary.encoded, summary.copied) == (1, 2)
    assert encode(tmp_path / "t.csv", tmp_path / "out").device is None
