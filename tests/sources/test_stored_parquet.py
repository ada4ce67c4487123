"""Parquet files of images in stores: the rows of the same local files, read piece by piece, in order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dcae_cache import remote
from dcae_cache.config import RunOptions
from dcae_cache.encode import maintenance
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.errors import SampleSkipped, SourceError
from dcae_cache.records import Part, Sample
from dcae_cache.sources import SourceOptions, data_files, open_source
from dcae_cache.sources.folder import FolderSource
from dcae_cache.sources.stored_parquet import StoredParquet
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.file_server import serve
from helpers.hf_datasets import BYTES, make, parquet, raw_parquet
from helpers.hub_server import HubServer, Repo
from helpers.images import encoded_image, make_folder, tiny_config
from helpers.memory_store import put
from helpers.s3 import BUCKET, s3_server

pytestmark = pytest.mark.usefixtures("own_cache")

Ranges = list[tuple[str, int, int]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.0)


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> Ranges:
    """(file, start, stop) of every range that is asked for."""
    asked: Ranges = []
    real = remote.read_range

    def read_range(place: str, start: int, stop: int, *rest: Any) -> bytes:
        asked.append((place.rpartition("/")[2], start, stop))
        return real(place, start, stop, *rest)

    monkeypatch.setattr(data_files, "read_range", read_range)
    return asked


def rows_of(uri: str | Path, **options: Any) -> list[Sample]:
    source = open_source(str(uri), SourceOptions(**options))
    return [ref.load() for ref in source.read(Part(0, tuple(source.entries())))]


def said(samples: list[Sample]) -> list[tuple[Any, ...]]:
    """All of them but where they came from."""
    return [(s.key, s.data, s.caption, s.label, s.attributes, s.shard) for s in samples]


def photos(root: Path, count: int, first: int = 0) -> Path:
    """A parquet file of real images in small row groups, as img2dataset writes them."""
    numbers = range(first, first + count)
    columns = {
        "key": [f"{number:05d}" for number in numbers],
        "caption": [f"caption {number}" for number in numbers],
        "jpg": [encoded_image(96 + 32 * (number % 2), 96, seed=number) for number in numbers],
    }
    root.mkdir(exist_ok=True)
    path = root / f"{first:05d}.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def encode(source: str | Path, out: Path, **options: Any) -> Summary:
    return encode_dataset(source, out, tiny_config(), RunOptions(device="cpu", part_size=3, workers=2, **options))


def parts_of(cache: Path) -> dict[str, Any]:
    """What is stored of each part, but where its images came from."""
    found: dict[str, Any] = {}
    for path in sorted((cache / "parts").iterdir()):
        found[path.name] = path.read_bytes() if path.suffix == ".safetensors" else pq.read_table(path).drop(["source"])
    return found


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("named", ["", "/a.parquet", "/*.parquet"])
def test_the_rows_are_those_of_the_same_local_files(tmp_path: Path, named: str, streaming: bool) -> None:
    root = tmp_path / "in"
    parquet(root / "a.parquet", make().select(range(4)))
    parquet(root / "b.parquet", make(extra=[{"n": [number]} for number in range(7)]).remove_columns("extra"))
    url = put(root)
    expected = rows_of(f"{root}{named}", streaming=streaming)
    assert said(rows_of(f"{url}{named}", streaming=streaming)) == said(expected)
    assert len(expected) == 4 if named == "/a.parquet" else 11
    assert {sample.label for sample in expected} == {"cat", "dog"}
    whole, some = (list(open_source(f"{url}{named}").entries(limit)) for limit in (None, 3))
    assert some == whole[:3]
    assert whole == list(open_source(f"{url}{named}").entries()), "the same files have the same stamps"


def test_from_s3_the_parts_are_those_of_the_local_files_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    root = tmp_path / "in"
    photos(root, 5)
    photos(root, 3, first=5)
    encode(root, tmp_path / "local")
    with s3_server():
        import s3fs

        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.put(str(root), f"{BUCKET}/data", recursive=True)
        url = f"s3://{BUCKET}/data/"
        encode(url, tmp_path / "out")
        ours, theirs = parts_of(tmp_path / "out"), parts_of(tmp_path / "local")
        assert list(ours) == list(theirs)
        for name, content in theirs.items():
            same = content.equals(ours[name]) if isinstance(content, pa.Table) else content == ours[name]
            assert same, name
        again = encode(url.rstrip("/"), tmp_path / "out")
        assert (again.device, again.encoded, again.refreshed) == (None, 0, 0)
        store.put(str(photos(root, 2, first=8)), f"{BUCKET}/data/00008.parquet")
        assert encode(url, tmp_path / "out").encoded == 2
        assert verify_cache(tmp_path / "out", VerifyOptions(device="cpu")).ok
        store.put(str(photos(tmp_path / "other", 5)), f"{BUCKET}/data/00000.parquet")
        same = encode(url, tmp_path / "out", recheck=True)
        assert (same.encoded, same.num_samples) == (0, 10), "the same bytes, whatever their time"


def test_only_what_is_wanted_is_read(tmp_path: Path, ranges: Ranges, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    images = [bytes([number]) * 50_000 for number in range(8)]
    table = pa.table({"image": images, "key": [f"{number}" for number in range(8)]})
    pq.write_table(table, tmp_path / "in/a.parquet", row_group_size=2, compression="none", use_dictionary=False)
    ends = [0, *(100_000 * number for number in range(1, 5))]  # of the row groups, about
    source = open_source(put(tmp_path / "in"))
    entries = list(source.entries())
    assert sum(stop - start for _, start, stop in ranges) < 250_000, "listing reads the ends of files, and keys"
    monkeypatch.setattr("dcae_cache.sources.stored_parquet.READ_AHEAD", 4096)
    monkeypatch.setattr(data_files, "BLOCK_BYTES", 1024)
    ranges.clear()
    (ref,) = source.read(Part(0, (entries[5],)))
    assert (ref.load().data, ref.num_bytes) == (images[5], 50_000)
    asked = [(start, stop) for _, start, stop in ranges if start < ends[3] - 1000]
    assert len(asked) > 90
    assert min(start for start, _ in asked) > ends[2] - 1000, "the row groups before and after are left alone"
    assert max(stop - start for start, stop in asked) <= 1024


def test_rows_in_any_order_and_rows_that_are_gone(tmp_path: Path) -> None:
    photos(tmp_path / "in", 5)
    photos(tmp_path / "in", 3, first=5)
    source = open_source(put(tmp_path / "in"))
    entries = list(source.entries())
    odd = type(entries[0])("00008", "8", -1, 0)
    other = type(entries[0])("another", "2", -1, 0)
    refs = list(source.read(Part(0, (entries[6], entries[1], odd, entries[4], entries[0], other))))
    assert [ref.load().key for ref in (*refs[:2], *refs[3:5])] == ["00006", "00001", "00004", "00000"]
    assert [ref.load().data for ref in refs[:2]] == [encoded_image(96, 96, seed=6), encoded_image(128, 96, seed=1)]
    for ref, words in ((refs[2], "has only 8 rows now"), (refs[5], "row 2 now has the key '00002'")):
        with pytest.raises(SampleSkipped, match=words):
            ref.load()


class Broken:
    """A store whose requests for ranges fail: ``left`` of each file's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: dict[str, int] = {}
        self.short = 0  # answers that break off, of any file
        real = MemoryFileSystem.cat_file

        def cat_file(store: Any, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
            name = path.rpartition("/")[2]
            data = bytes(real(store, path, start=start, end=end))
            if self.left.get(name, 0):
                self.left[name] -= 1
                raise ConnectionError("the line is down")
            if self.short:
                self.short -= 1
                return data[: len(data) // 2]
            return data

        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)


def test_a_broken_connection_is_tried_again_and_one_that_stays_so_leaves_the_part_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "in"
    photos(root, 3)
    photos(root, 3, first=3)
    url = put(root)
    encode(url, tmp_path / "whole")
    broken = Broken(monkeypatch)
    broken.left, broken.short = {"00000.parquet": 2, "00003.parquet": 2}, 2
    encode(url, tmp_path / "out")
    assert parts_of(tmp_path / "out").keys() == parts_of(tmp_path / "whole").keys()
    shutil.rmtree(tmp_path / "out")

    real = StoredParquet.walk

    def walk(rows: StoredParquet, numbers: Iterable[int]) -> Iterator[pa.Table]:
        broken.left["00000.parquet"] = 99
        return real(rows, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(StoredParquet, "walk", walk)
        with pytest.raises(
            SourceError, match=r"1 of 2 parts could not be read\. Can't read .*/00000\.parquet: the line"
        ):
            encode(url, tmp_path / "out")
    broken.left.clear()
    summary = encode(url, tmp_path / "out")
    assert (summary.encoded, summary.complete) == (3, True)
    for name, content in parts_of(tmp_path / "whole").items():
        assert parts_of(tmp_path / "out")[name] == content, name


def test_a_file_that_became_another_is_told(tmp_path: Path) -> None:
    path = photos(tmp_path / "in", 4)
    url = put(tmp_path / "in")
    source = open_source(url)
    part = Part(0, tuple(source.entries()))
    fsspec.filesystem("memory").pipe_file(f"{url}/{path.name}", path.read_bytes()[:100])
    with pytest.raises(SourceError, match=r"00000\.parquet ends before byte \d+: it has changed since it was listed"):
        list(source.read(part))
    fsspec.filesystem("memory").pipe_file(f"{url}/{path.name}", b"x" * path.stat().st_size)
    with pytest.raises(SourceError, match=r"00000\.parquet can't be read on: .*Replace it if it is damaged"):
        list(source.read(part))


def test_another_process_asks_for_one_end_and_no_keys(tmp_path: Path, ranges: Ranges) -> None:
    for first in (0, 3, 6):
        photos(tmp_path / "in", 3, first=first)
    url = put(tmp_path / "in")
    leader = open_source(url)
    part = Part(0, tuple(leader.entries()))
    found = leader.found()
    ranges.clear()
    other = open_source(url)
    other.adopt(found)
    refs = other.read(part)
    first = next(refs)
    assert first.key == "00000"
    assert {name for name, *_ in ranges} == {"00000.parquet"}
    assert [ref.load().caption for ref in refs] == [f"caption {number}" for number in range(1, 9)]
    later = open_source(f"{url}/*.parquet")
    photos(tmp_path / "in", 2, first=1)
    put(tmp_path / "in")  # a file in between, which would move all rows
    later.adopt(found)
    assert [ref.load().key for ref in later.read(part)] == [f"{number:05d}" for number in range(9)]


def test_splits_are_told_by_names(tmp_path: Path) -> None:
    root = tmp_path / "in"
    parquet(root / "data/train-00000-of-00001.parquet", make(3))
    parquet(root / "data/test-00000-of-00001.parquet", make(2))
    url = put(root)
    with pytest.raises(SourceError, match=r"has the splits train, test: choose one with `split`"):
        rows_of(url)
    for options in ({}, {"streaming": True}):
        assert said(rows_of(url, split="test", **options)) == said(rows_of(root, split="test", **options))
    assert len(rows_of(f"{url}/data/*.parquet")) == 5
    assert len(rows_of(f"{url}/data/*.parquet", split="train")) == 3
    with pytest.raises(SourceError, match=r"no split dev; it has: train, test"):
        rows_of(url, split="dev")


def test_columns_that_lack_their_type_in_a_file_and_columns_that_differ(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    raw_parquet(root / "a.parquet", image=BYTES[:2], text=["one", "two"], n=pa.array([1, 2], pa.int32()))
    raw_parquet(root / "b.parquet", n=[3], text=pa.array([None], pa.null()), image=BYTES[2:3])
    url = put(root)
    found = rows_of(url)
    assert [(sample.data, sample.caption, sample.attributes) for sample in found] == [
        (BYTES[0], "one", {"n": 1}), (BYTES[1], "two", {"n": 2}), (BYTES[2], None, {"n": 3}),
    ]  # fmt: skip
    raw_parquet(root / "c.parquet", image=BYTES[:1], other=[1])
    with pytest.raises(
        SourceError, match=r"c\.parquet and .*a\.parquet have different columns: n, other, text only in"
    ):
        rows_of(put(root))


def test_images_beside_the_files_are_read_there_and_none_of_this_machine(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "data").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "images/a.jpg").write_bytes(b"a")
    (root / "data/b.jpg").write_bytes(b"b")
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    named = [{"bytes": None, "path": path} for path in ("../images/a.jpg", "b.jpg", str(secret), f"file://{secret}")]
    for number, cells in enumerate((named[:3], named[3:])):
        raw_parquet(root / f"data/{number}.parquet", image=cells)
    url = put(root)
    source = open_source(f"{url}/data/*.parquet")
    refs = list(source.read(Part(0, tuple(source.entries()))))
    assert [ref.load().data for ref in refs[:2]] == [b"a", b"b"]
    for ref in refs[2:]:
        with pytest.raises(SampleSkipped, match=r"unreadable: a remote table names .*secret\.jpg: not read"):
            ref.load()


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    path = photos(tmp_path / "in", 2)
    empty = raw_parquet(tmp_path / "empty.parquet", image=pa.array([], pa.binary()))
    store = fsspec.filesystem("memory")
    store.pipe_file(f"/refused{tmp_path}/damaged/a.parquet", path.read_bytes()[:-9])
    store.pipe_file(f"/refused{tmp_path}/empty/a.parquet", empty.read_bytes())
    store.pipe_file(f"/refused{tmp_path}/saved/data-00000-of-00001.arrow", b"x")
    url = f"memory://refused{tmp_path}"
    for name, words in (
        ("damaged", r"a\.parquet is damaged\. Replace it, or leave it out; `streaming` gets past it"),
        ("empty", r"empty is empty: there are no rows"),
        ("saved", r"must be parquet, and of memory.*saved data-00000-of-00001\.arrow is not\. Download"),
        ("damaged/b.parquet", r"There is no file memory://refused.*b\.parquet\. Check the address"),
        ("damaged/b*.parquet", r"must be parquet, and of memory.*b\*\.parquet there are none"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            list(open_source(f"{url}/{name}").entries())
        assert "\n" not in str(caught.value)
    with serve(tmp_path / "in") as server:
        assert len(rows_of(f"{server.url}/{path.name}")) == 2
        server.with_ranges = False
        with pytest.raises(SourceError, match=r"can't be read in pieces: its server sends the whole file\. Download"):
            list(open_source(f"{server.url}/{path.name}").entries())


def test_what_is_secret_in_a_url_is_in_no_entry_sample_or_word_to_others(tmp_path: Path) -> None:
    path = photos(tmp_path / "in", 2)
    with serve(tmp_path / "in") as server:
        source = open_source(f"{server.url}/{path.name}?token=hunter2")
        entries = tuple(source.entries())
        refs = list(source.read(Part(0, entries)))
        assert "hunter2" not in repr(
            (source.uri, entries, source.found(), [ref.load() for ref in refs], refs[0].source)
        )
        other = open_source(f"{server.url}/{path.name}?token=hunter2")
        other.adopt(source.found())
        assert [ref.key for ref in other.read(Part(0, entries))] == ["00000", "00001"]


def test_a_recheck_holds_few_images_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folder(tmp_path / "in", 6)
    options = RunOptions(device="cpu", workers=2)
    encode_dataset(source, tmp_path / "out", tiny_config(), options)
    loaded, most, real = [0], [0], FolderSource.read

    def read(self: FolderSource, part: Part) -> Iterator[Any]:
        for number, ref in enumerate(real(self, part), start=1):
            most[0] = max(most[0], number - loaded[0])
            yield ref

    def is_another(*_: Any) -> bool:
        loaded[0] += 1
        return False

    monkeypatch.setattr(FolderSource, "read", read)
    monkeypatch.setattr(maintenance, "_is_another", is_another)
    monkeypatch.setattr(maintenance, "_AT_ONCE", 2)
    encode_dataset(source, tmp_path / "out", tiny_config(), RunOptions(device="cpu", workers=2, recheck=True))
    assert (loaded, most) == ([6], [2])


ON_HUB = """
import json, sys
from dcae_cache.records import Part
from dcae_cache.sources import open_source
for uri in sys.argv[1:]:
    source = open_source(uri)
    refs = source.read(Part(0, tuple(source.entries())))
    print(json.dumps([source.uri, [[ref.key, ref.load().data.decode()] for ref in refs]]))
"""


def test_files_in_a_repository_of_the_hub(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads its environment once."""
    names = [f"data/train-0000{number}-of-00002.parquet" for number in range(2)]
    parquet(tmp_path / names[0], make().select(range(4)))
    parquet(tmp_path / names[1], make().select(range(4, 7)))
    repo = Repo({name: (tmp_path / name).read_bytes() for name in names} | {"README.md": b""}, token="right-token")
    url = "hf://datasets/owner/name"
    with HubServer({"owner/name": repo}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "right-token"}
        done = subprocess.run(
            [sys.executable, "-c", ON_HUB, url, f"{url}/{names[0]}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    rows = [[f"{number:08d}", data.decode()] for number, data in enumerate(BYTES)]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[url, rows], [f"{url}/{names[0]}", rows[:4]]]
