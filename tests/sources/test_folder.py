"""The folder source: what is listed, in which order, under which key, with which caption and label."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcae_cache.errors import SampleSkipped, SourceError
from dcae_cache.records import Part, Sample
from dcae_cache.sources import SourceOptions, open_source
from dcae_cache.sources.folder import location_to_path, path_to_location


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")


def samples(root: Path, **options: str) -> dict[str, Sample]:
    source = open_source(str(root), SourceOptions(**options))
    part = Part(0, tuple(source.entries()))
    return {ref.key: ref.load() for ref in source.read(part)}


def test_order_keys_and_what_is_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path, "b/2.png", "b/10.JPG", "a.webp", "c/d/e.x.jpeg", ".hidden.jpg", ".git/x.jpg", "notes.md", "b/t.txt"
    )
    source = open_source(str(tmp_path))
    assert [entry.key for entry in source.entries()] == ["a", "b/10", "b/2", "c/d/e.x"]
    assert [entry.location for entry in source.entries()] == ["a.webp", "b/10.JPG", "b/2.png", "c/d/e.x.jpeg"]


def test_sizes_and_times_are_those_of_the_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(5, 7))
    (entry,) = open_source(str(tmp_path)).entries()
    assert (entry.num_bytes, entry.mtime_ns) == (5, 7)


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.jpg")
    (tmp_path / "again").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    assert [entry.key for entry in open_source(str(tmp_path)).entries()] == ["link", "again/a"]


def test_what_cannot_be_read_is_listed_and_then_skipped(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = open_source(str(tmp_path))
    refs = list(source.read(Part(0, tuple(source.entries()))))
    reasons = {}
    for ref in refs:
        with pytest.raises(SampleSkipped) as caught:
            ref.load()
        reasons[ref.key] = caught.value.reason
    assert reasons == {"broken": "missing", "circle": "unreadable", "pipe": "unreadable"}


def test_a_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"image")
    touch(tmp_path, "file:odd.jpg", "100%.jpg", "späť.jpg")
    found = samples(tmp_path)
    assert sorted(found) == ["100%", "file:caf%E9", "file:file%3Aodd", "späť"]
    for sample in found.values():
        sample.source.encode()
        assert (tmp_path / location_to_path(sample.source)).read_bytes() == b"image"


def test_location_is_invertible() -> None:
    for name in ("a/b.jpg", "file:a.jpg", "a%20b.jpg", os.fsdecode(b"\xff/\xfe.jpg"), "a\\x.jpg"):
        assert location_to_path(path_to_location(name)) == name


@pytest.mark.parametrize(("name", "message"), [("missing", "There is no folder"), ("file.dat", "is a file")])
def test_what_is_no_folder(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file.dat").write_text("x")
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path / name))


def test_a_folder_without_images_says_what_it_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(SourceError, match=r"No images found in .*\.jpg"):
        list(open_source(str(tmp_path)).entries())


def test_captions_and_labels_beside_images(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", "cat/b.jpg", "c.jpg")
    (tmp_path / "cat/a.txt").write_text(" a cat \n", encoding="utf-8-sig")
    (tmp_path / "cat/b.json").write_text('{"caption": "two cats", "label": 7, "score": 0.5}')
    found = samples(tmp_path)
    assert (found["cat/a"].caption, found["cat/a"].label) == ("a cat", "cat")
    assert (found["cat/b"].caption, found["cat/b"].label, found["cat/b"].attributes) == (
        "two cats",
        "7",
        {"score": 0.5},
    )
    assert (found["c"].caption, found["c"].label) == (None, None)


def test_metadata_files_of_the_datasets_convention(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg", "sub/c.jpg")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "first", "n": 1}\n\n')
    (tmp_path / "sub/metadata.csv").write_text('file_name,text,label\nb.jpg,"one, two",x\nc.jpg,,y\n')
    (tmp_path / "sub/c.txt").write_text("from the file beside it")
    found = samples(tmp_path)
    assert (found["a"].caption, found["a"].attributes) == ("first", {"n": 1})
    assert (found["sub/b"].caption, found["sub/b"].label) == ("one, two", "x")
    assert (found["sub/c"].caption, found["sub/c"].label) == ("from the file beside it", "y")


def test_columns_can_be_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "a.json").write_text('{"caption": "short", "long": "a long one", "kind": "k"}')
    sample = samples(tmp_path, caption_column="long", label_column="kind")["a"]
    assert (sample.caption, sample.label, sample.attributes) == ("a long one", "k", {"caption": "short"})


@pytest.mark.parametrize("line", ['{"file": "a.jpg"}', "nonsense", "[1]"])
def test_a_bad_metadata_file_is_named(tmp_path: Path, line: str) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(SourceError, match=r"metadata\.jsonl"):
        samples(tmp_path)


def test_broken_json_skips_its_sample(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(SampleSkipped) as caught:
        samples(tmp_path)
    assert caught.value.reason == "bad_json"


def test_listing_many_files_opens_none_and_stays_small(tmp_path: Path) -> None:
    """A million files take 310 MiB; here are fewer, so that the test is quick."""
    count = 40_000
    for number in range(count):
        folder = tmp_path / f"{number % 40:03d}"
        if number < 40:
            folder.mkdir()
        os.close(os.open(folder / f"{number:07d}.jpg", os.O_CREAT | os.O_WRONLY))
    code = (
        "import io, os, sys, tracemalloc, pathlib\n"
        "from dcae_cache.cache.listing import list_entries\n"
        "from dcae_cache.sources import open_source\n"
        "source = open_source(sys.argv[1])\n"
        "def refuse(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('.jpg'):\n"
        "        raise AssertionError(arguments[0])\n"
        "sys.addaudithook(refuse)\n"
        "list_entries(source.entries(1))\n"  # imports what is imported late
        "tracemalloc.start()\n"
        "print(list_entries(source.entries(), 4096).num_rows, tracemalloc.get_traced_memory()[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    listed, peak = map(int, done.stdout.split())
    assert listed == count
    assert peak < 20 * 2**20
