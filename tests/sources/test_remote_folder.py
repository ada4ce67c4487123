"""Folders of images in stores: listed, keyed, captioned and told changed as local ones are, with few requests."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dcae_cache import remote
from dcae_cache.cache.parts import read_rows
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.errors import MissingFileError, SampleSkipped, SourceError, UsageError, VerificationError
from dcae_cache.records import Notes, Part
from dcae_cache.sources import ListedSource, SourceOptions, open_source
from dcae_cache.sources.folder import FolderSource
from dcae_cache.sources.store_folder import StoreFolder
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.images import encoded_image, make_folder, tiny_config
from helpers.memory_store import put
from helpers.s3 import BUCKET, s3_server
from helpers.tars import make_tar

REMEMBERED = "dcae_cache.encode.run.remember"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with s3_server():
        import s3fs

        yield s3fs.S3FileSystem(use_listings_cache=False)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.0)


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def notes(uri: str, **options: Any) -> dict[str, Notes]:
    source = open_source(uri, SourceOptions(**options))
    return {ref.key: ref.notes() for ref in source.read(Part(0, tuple(source.entries())))}


def without_entries(table: Path) -> pa.Table:
    """A part's table less the digest of which versions of which files it was made of."""
    found = pq.read_table(table)
    kept = {name: value for name, value in found.schema.metadata.items() if name != b"dcae_cache.entries_sha256"}
    assert len(kept) == len(found.schema.metadata) - 1
    return found.replace_schema_metadata(kept)


def ledger(source: ListedSource) -> dict[str, Any]:
    counts = source.counts().listed
    assert counts is not None
    return counts.to_json()


def test_a_listing_is_that_of_the_same_local_folder(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file_name": ["a.jpg"], "n": [1]}), tmp_path / "metadata.parquet")
    root = write(
        tmp_path,
        {
            **dict.fromkeys(["b/2.png", "b/10.JPG", "a.jpg", "c/d/e.x.jpeg", ".git/x/y", ".hidden.jpg", "b.md"], b"i"),
            "b/2.txt": "two", "b/2.json": '{"score": 2}', "b/10.JPG.caption": "ten", "c/stray.txt": "x",
            "file:odd.jpg": "",
            "c/metadata.jsonl": '{"file_name": "d/e.x.jpeg", "text": "e"}\n{"file_name": "../a.jpg", "m": 2}\n'
            '{"file_name": "../nowhere/z.jpg"}',
        },
    )  # fmt: skip
    here, there = open_source(str(root)), open_source(put(root))
    expected, found = list(here.entries()), list(there.entries())
    assert [(e.key, e.location, e.num_bytes) for e in found] == [(e.key, e.location, e.num_bytes) for e in expected]
    assert len({entry.mtime_ns for entry in found}) > 1
    assert ledger(there) == ledger(here)
    assert ledger(there)["ignored"] == {"hidden": 2, ".md": 1}
    assert notes(put(root)) == notes(str(root))
    assert notes(put(root))["b/10"].caption == "ten"
    whole = {"metadata.jsonl": json.dumps({"file_name": f"{put(root)}/b/2.png", "whole": True})}
    assert notes(put(write(tmp_path, whole)))["b/2"].attributes["whole"]


def test_from_s3_the_parts_are_those_of_the_local_folder_and_a_second_run_does_nothing(
    s3: Any, tmp_path: Path
) -> None:
    photos = make_folder(tmp_path / "in", 8)
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[:6]):
        path.with_suffix(".txt").write_text(f"caption {number}")
    write(photos, {"metadata.csv": "file_name,score\nclass0/img000.jpg,7\n", "class0/empty.jpg": b""})
    s3.put(str(photos), f"{BUCKET}/pictures", recursive=True)
    s3.pipe_file(f"{BUCKET}/pictures/class0/", b"")  # what consoles mark a folder with
    url = f"s3://{BUCKET}/pictures/"

    def encode(source: str, out: str) -> Summary:
        return encode_dataset(source, tmp_path / out, tiny_config(), RunOptions(device="cpu", part_size=4, workers=2))

    encode(str(photos), "local")
    first = encode(url, "out")
    assert sum(first.skipped.values()) == 1
    for path in sorted((tmp_path / "local" / "parts").iterdir()):
        other = tmp_path / "out" / "parts" / path.name
        if path.suffix == ".safetensors":
            assert other.read_bytes() == path.read_bytes(), path.name
        else:
            assert without_entries(other).equals(without_entries(path), check_metadata=True), path.name
    again = encode(url.rstrip("/"), "out")
    assert (again.device, again.encoded, again.refreshed) == (None, 0, 0)
    assert verify_cache(tmp_path / "out", VerifyOptions(device="cpu")).ok
    s3.pipe_file(f"{BUCKET}/pictures/class0/img000.txt", b"edited")
    assert encode(url, "out").refreshed == 1
    s3.pipe_file(f"{BUCKET}/pictures/class0/img000.jpg", encoded_image(96, 128, seed=77))
    changed = encode(url, "out")
    assert (changed.encoded, changed.copied) == (1, 2), "one is empty"
    rows = {row["key"]: row for row in read_rows(tmp_path / "out", "part-000000").to_pylist()}
    assert rows["class0/img000"]["caption"] == "edited"


def test_listing_asks_about_no_single_file_and_reading_is_one_request_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(write(tmp_path, {"x/a.jpg": "a", "x/b.jpg": "b", "x/a.txt": "of a", "c.jpg": "c"}))
    asked: Counter[str] = Counter()

    def counted(verb: str) -> Any:
        real = getattr(StoreFolder, verb)

        def call(self: StoreFolder, name: str, *rest: Any) -> Any:
            asked[verb] += 1
            return real(self, name, *rest)

        return call

    for verb in ("list", "stat", "read"):
        monkeypatch.setattr(StoreFolder, verb, counted(verb))
    source = open_source(url)
    part = Part(0, tuple(source.entries()))
    source.notes_stamp(part.entries)
    assert asked == {"list": 2}, "the root, which told that it holds images, isn't listed again"
    refs = list(source.read(part))
    assert [ref.load().caption for ref in refs] == [None, "of a", None]
    assert asked == {"list": 2, "read": 3 + 3}, "of a caption that isn't there, too, one"
    other = open_source(url)
    other.adopt(source.found())
    asked.clear()
    other.notes_stamp(part.entries)
    assert asked == {"stat": 3}


def test_a_store_that_fails_for_the_moment_is_asked_again_and_then_the_image_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(make_folder(tmp_path / "in", 4))
    real, left = MemoryFileSystem.cat_file, {"img000.jpg": 2, "img001.jpg": 99}

    def cat_file(self: Any, path: str, **limits: Any) -> bytes:
        name = path.rpartition("/")[2]
        if left.get(name, 0):
            left[name] -= 1
            raise ConnectionError("the line is down")
        return bytes(real(self, path, **limits))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    options = RunOptions(device="cpu", workers=1)
    summary = encode_dataset(url, tmp_path / "out", tiny_config(), options)
    assert (summary.num_samples, summary.skipped) == (3, {"unreadable": 1})
    assert left["img001.jpg"] == 99 - 5
    (row,) = [row for row in read_rows(tmp_path / "out", "part-000000").to_pylist() if row["status"] == "skipped"]
    assert "img001.jpg: the line is down. Check the address" in row["detail"]
    left.clear()
    options = RunOptions(device="cpu", workers=1, retry_skipped=True)
    assert encode_dataset(url, tmp_path / "out", tiny_config(), options).num_samples == 4


def test_what_is_too_large_or_gone_is_skipped_by_its_name(tmp_path: Path) -> None:
    url = put(write(tmp_path, {"a.jpg": "1234567", "b.jpg": "12", "c.jpg": "123"}))
    source = open_source(url, SourceOptions(max_bytes=4))
    entries = tuple(source.entries())
    store = fsspec.filesystem("memory")
    store.rm_file(f"{url}/b.jpg")
    store.pipe_file(f"{url}/c.jpg", b"it has grown")
    reasons = {}
    for ref in source.read(Part(0, entries)):
        with pytest.raises(SampleSkipped) as caught:
            ref.load()
        reasons[ref.key] = caught.value.reason
    assert reasons == {"a": "too_large", "b": "missing", "c": "too_large"}


@pytest.mark.parametrize("location", ["../secret.jpg", "/secret.jpg", "x/../../secret.jpg"])
def test_a_plan_names_nothing_outside_the_folder(tmp_path: Path, location: str) -> None:
    source = open_source(put(write(tmp_path, {"in/a.jpg": "a", "secret.jpg": "s"})) + "/in")
    (entry,) = source.entries()
    (ref,) = source.read(Part(0, (type(entry)("k", location, 1, 1),)))
    with pytest.raises(SampleSkipped, match=r"missing: .* is not in the folder"):
        ref.load()


def test_images_without_a_known_suffix_are_found_by_their_first_bytes(tmp_path: Path) -> None:
    picture = encoded_image(40, 40)
    url = put(
        write(tmp_path, {"0001": picture, "sub/x.part": picture, "notes": "none", "empty": "", "k.jpg": picture})
    )
    assert [entry.key for entry in open_source(url).entries()] == ["k"]
    found = open_source(url, SourceOptions(any_suffix=True))
    assert [entry.key for entry in found.entries()] == ["0001", "k", "sub/x.part"]


def test_what_a_url_is_taken_for(tmp_path: Path) -> None:
    make_tar(tmp_path / "tars/a/0.tar", [("a.jpg", b"x")])
    make_tar(tmp_path / "tars/1.tar", [("b.jpg", b"x")])
    write(tmp_path, {"data/x.arrow": "x", "none/b.md": "x", "none/.c": "x", "both/y.jpg": "x", "both/0.tar": "x"})
    shutil.copy(tmp_path / "tars/1.tar", tmp_path / "flat.tar")
    url = put(tmp_path)
    tars = open_source(f"{url}/tars/")
    assert (tars.kind, tars.uri) == ("input tars", f"{url}/tars/**/*.tar")
    assert len(list(tars.entries())) == 2
    assert isinstance(open_source(f"{url}/both"), FolderSource)
    with pytest.raises(SourceError, match=r"of a store must be parquet, and of .*/data x\.arrow is not\. Download"):
        open_source(f"{url}/data")
    with pytest.raises(SourceError, match=r"No images found in memory://.*/none .* found 1 hidden, 1 \.md"):
        list(open_source(f"{url}/none").entries())
    for name in ("nowhere", "none/b.md"):
        with pytest.raises(MissingFileError, match=rf"^There is no folder memory://.*/{name}\. Check the address\.$"):
            open_source(f"{url}/{name}")
    assert open_source(f"{url}/both", SourceOptions(table="list.csv")).kind == "a table"
    with pytest.raises(UsageError, match=r"`table` names a file in a folder, and .*/list\.csv is a file\."):
        open_source(f"{url}/both/list.csv", SourceOptions(table="other.csv"))
    with pytest.raises(SourceError, match=r"^https://host/images is no tar, .* web servers don't list folders\. Give"):
        open_source("https://user:secret@host/images?token=secret")
    local = open_source(f"file://{tmp_path}/both")
    assert (local.uri, len(list(local.entries()))) == (str(tmp_path / "both"), 1)


def test_names_that_a_store_allows_and_no_folder_does_are_counted(s3: Any) -> None:
    for name in ("a.jpg", "/b.jpg", "c//d.jpg", "c/e.jpg"):
        s3.pipe_file(f"{BUCKET}/odd/{name}", b"x")
    source = open_source(f"s3://{BUCKET}/odd")
    assert [entry.key for entry in source.entries()] == ["a", "c/e"]
    assert ledger(source)["ignored"] == {"no name": 2}


def test_folders_without_end_are_an_error(tmp_path: Path) -> None:
    deep = "/".join("d" * 103)
    with pytest.raises(SourceError, match="lie more than 100 deep in each other"):
        list(open_source(put(write(tmp_path, {"a.jpg": "x", f"{deep}/b.jpg": "x"}))).entries())


def test_a_source_that_a_cache_names_is_read_only_where_the_person_has_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(make_folder(tmp_path / "in", 2))
    with monkeypatch.context() as patch:
        patch.setattr(REMEMBERED, lambda *places: None)
        encode_dataset(url, tmp_path / "out", tiny_config(), RunOptions(device="cpu"))
    with pytest.raises(VerificationError, match=r"says that its images are at memory://.* nothing was read there"):
        verify_cache(tmp_path / "out", VerifyOptions(device="cpu"))
    assert verify_cache(tmp_path / "out", VerifyOptions(device="cpu", source=url)).ok


def test_what_is_secret_in_a_url_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcae_cache.sources import remote_tree

    plain = put(make_folder(tmp_path / "in", 2))
    secret = "ftp://me:hunter2@host/pictures"
    real = StoreFolder.__init__
    monkeypatch.setattr(remote_tree.StoreFolder, "__init__", lambda self, url: real(self, plain))
    encode_dataset(secret, tmp_path / "out", tiny_config(), RunOptions(device="cpu"))
    assert open_source(secret).uri == "ftp://host/pictures"
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
    assert b"ftp://host/pictures" in (tmp_path / "out" / "plan.parquet").read_bytes()
