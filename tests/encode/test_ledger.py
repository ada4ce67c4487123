"""The ledger of a run: everything a source holds is counted, it adds up, and it is the same however the run went."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.encode.preview import preview_dataset
from dcae_cache.errors import StrictError, UsageError
from dcae_cache.sources import SourceOptions
from helpers.command import run
from helpers.images import encoded_image, make_folder, tiny_config
from helpers.tars import make_tar, triples


def encode(source: Path | str, out: Path, *, reading: SourceOptions | None = None, **options: Any) -> Summary:
    settings = {"device": "cpu", "workers": 2, "part_size": 8, "batch_size": 8, **options}
    return encode_dataset(source, out, tiny_config(), RunOptions(**settings), source_options=reading)


def test_a_thousand_files_of_every_kind_add_up(tmp_path: Path) -> None:
    """Each file is made with what it must be counted as; only a few of the images are real, for speed."""
    root, chance = tmp_path / "in", random.Random(0)
    expected: Counter[str] = Counter()

    def add(name: str, kind: str, data: bytes = b"x") -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.exists()
        path.write_bytes(data)
        expected[kind] += 1

    real = [encoded_image(96, 128, seed) for seed in range(4)]
    captions = 0
    for number in range(300):
        stem = f"{chance.choice(['a', 'b/c', 'd e'])}/img{number:03d}"
        suffix = chance.choice([".jpg", ".PNG", ".webp"])
        add(f"{stem}{suffix}", "image", real[number % 4] if number % 100 == 0 else b"no image")
        beside = [".txt", ".TXT", ".caption", ".tags", f"{suffix}.txt", None]
        if chosen := beside[number % len(beside)]:
            add(f"{stem}{chosen}", "notes", b"a caption" if number % 30 else "café".encode("cp1252"))
            captions += 1 if number % 30 else 0
        if number % 10 == 0:
            add(f"{stem}.json", "notes", b'{"score": 1}')
    rows = [json.dumps({"file_name": f"gone{number}.jpg", "text": "x"}) for number in range(7)]
    add("metadata.jsonl", "notes", "\n".join(rows).encode())
    for number in range(60):
        add(f"lost/{number}.txt", "stray")
        add(f"videos/{number}.mp4", ".mp4")
        add(f"notes/{number}.MD", ".md")
    for number in range(40):
        add(f"a/.hidden{number}", "hidden")
        add(f".cache/deep/{number}.jpg", "hidden")
        add(f"b/noext{number}", "no suffix")
    add("meta_of_a_tool.json", ".json", b'{"made": "by a tool"}')
    while expected.total() < 1000:
        add(f"more/{expected.total()}.parquet", ".parquet")
    assert sum(path.is_file() for path in root.rglob("*")) == expected.total() == 1000

    summary = encode(root, tmp_path / "out", part_size=100)
    ledger = summary.ledger
    ignored = {kind: expected[kind] for kind in (".mp4", ".md", "hidden", "no suffix", ".json", ".parquet")}
    assert ledger["ignored"] == ignored
    assert (ledger["images"], ledger["notes"], ledger["strays"]) == (
        expected["image"],
        expected["notes"],
        expected["stray"],
    )
    assert ledger["found"] == 1000 == ledger["images"] + ledger["notes"] + ledger["strays"] + sum(ignored.values())
    assert ledger["samples"] == 300 == summary.num_samples + sum(summary.skipped.values())
    assert ledger["with_caption"] + ledger["without_caption"] == 300
    assert ledger["with_label"] == 300
    assert (ledger["unmatched"], ledger["first_unmatched"]) == (7, "gone0.jpg")
    assert preview_dataset(str(root), tiny_config(), RunOptions(device="cpu")).ledger["found"] == 1000


def _mixed_folder(root: Path) -> Path:
    make_folder(root, 20)
    for number in range(0, 20, 2):
        (root / f"class{number % 3}" / f"img{number:03d}.txt").write_text(f"number {number}")
    (root / "class1/img004.txt").write_bytes(b"caf\xe9")
    (root / "readme.md").write_text("x")
    return root


def _mixed_tars(root: Path) -> str:
    for number in range(3):
        odd = [(f"v{number}.0.jpg", encoded_image(96, 128)), (f"v{number}.1.jpg", encoded_image(96, 128, 1))]
        extra = [(f"x{number}.npy", b"array"), ("._fork", b"x"), (f"y{number}.jpg", encoded_image(96, 128, 2))]
        bad = [(f"y{number}.txt", b"caf\xe9")]
        make_tar(root / f"{number}.tar", [*triples(10 * number, 3), *odd, *extra, *bad])
    return f"{root}/*.tar"


@pytest.mark.parametrize("make", [_mixed_folder, _mixed_tars])
def test_several_processes_and_a_dry_run_count_the_same(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    (tmp_path / "in").mkdir()
    source = str(make(tmp_path / "in"))
    alone = encode(source, tmp_path / "one")
    crew = encode(source, tmp_path / "two", num_processes=2, workers=2)
    assert alone.ledger == crew.ledger
    again = encode(source, tmp_path / "two")
    assert (again.device, again.ledger) == (None, alone.ledger)
    assert preview_dataset(source, tiny_config(), RunOptions(device="cpu")).ledger == alone.ledger
    assert alone.ledger["unread_captions"] == (1 if make is _mixed_folder else 3)
    if make is _mixed_tars:
        assert alone.ledger["ignored"] == {".npy": 3, "resource fork": 3}
        assert (alone.ledger["split"], alone.ledger["images"], alone.ledger["with_caption"]) == (6, 18, 9)
    else:
        assert (alone.ledger["with_caption"], alone.ledger["without_caption"]) == (9, 11)


def test_the_command_shows_it_everywhere(tmp_path: Path) -> None:
    source, out = _mixed_folder(tmp_path / "in"), tmp_path / "out"
    recipe = ("--model", "f32c32-tiny", "--resolution", 128, "--device", "cpu")
    said = "Found 31: 20 images, 10 that belong to them; left out 1 (.md 1)."
    captions = "Captions: 9 with, 11 without. Labels: 20 with, 0 without."
    planned = run("encode", source, "--out", out, *recipe, "--dry-run", "--strict", expect=1)
    made = run("encode", source, "--out", out, *recipe).stderr
    for text in (planned.stdout, made, run("info", out).stdout):
        assert said in text
        assert captions in text
        assert "1 captions are not UTF-8" in text
    assert "there are 1 files left out; 1 captions of unknown encoding; 11 images without a caption" in planned.stderr
    shown = json.loads(run("info", out, "--json").stdout)["ledger"]
    assert (shown["found"], shown["images"], shown["ignored"]) == (31, 20, {".md": 1})


def test_strict_lets_a_clean_source_pass(photos: Path, tmp_path: Path) -> None:
    assert encode(photos, tmp_path / "out", strict=True).num_samples == 20
    (tmp_path / "in").mkdir()
    make_tar(tmp_path / "in/a.tar", triples(0, 3))
    assert encode(tmp_path / "in/a.tar", tmp_path / "tar", strict=True).ledger["with_caption"] == 3


@pytest.mark.parametrize("fault", ["stray", "row", "left out", "uncaptioned", "encoding"])
def test_strict_fails_for_each_fault_and_the_cache_stays(tmp_path: Path, fault: str) -> None:
    source = make_folder(tmp_path / "in", 3)
    for path in source.rglob("*.jpg"):
        path.with_suffix(".txt").write_text("caption")
    caption = source / "class0/img000.txt"
    if fault == "stray":
        (source / "none.txt").write_text("of nothing")
    elif fault == "row":
        (source / "metadata.jsonl").write_text('{"file_name": "gone.jpg", "n": 1}')
    elif fault == "left out":
        (source / "clip.mp4").touch()
    elif fault == "uncaptioned":
        caption.unlink()
    else:
        caption.write_bytes(b"caf\xe9")
    with pytest.raises(StrictError, match="The cache is usable"):
        encode(source, tmp_path / "out", strict=True)
    assert encode(source, tmp_path / "out").device is None


@pytest.mark.parametrize("place", ["s3://bucket/x", "gs://bucket/x", "hf://datasets/o/n"])
def test_a_remote_output_is_refused_before_any_work(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="names a remote place, and caches are made on local disks"):
        encode(tmp_path / "no/such/source", Path(place))
    assert list(tmp_path.iterdir()) == []


def test_an_option_without_effect_is_refused_before_any_work(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`split` has no effect on a folder of images"):
        encode(photos, tmp_path / "out", reading=SourceOptions(split="train"))
    assert not (tmp_path / "out").exists()
