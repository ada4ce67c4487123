"""Tables at URLs: the same rows, keys and images as from the table on a disk, and nothing of this machine."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcae_cache import remote
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.errors import MissingFileError, SampleSkipped, SourceError
from dcae_cache.records import Part, Sample
from dcae_cache.sources import SourceOptions, open_source, table_files
from helpers.file_server import serve
from helpers.images import make_folder, tiny_config
from helpers.memory_store import put
from helpers.s3 import BUCKET, s3_server

ROWS = [
    {"path": "a.jpg", "caption": "one", "n": 1},
    {"path": "sub/b.jpg", "caption": 'two, "quoted"', "n": 2},
    {"path": "a.jpg", "caption": "another", "n": 1},
]
TABLES = ("t.csv", "t.tsv", "t.jsonl", "t.parquet")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.0)


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in cells]
        path.write_text("\n".join(map((";" if path.suffix == ".csv" else "\t").join, quoted)))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with tables of every kind in ``tables``, beside their images."""
    folder = tmp_path / "in/tables"
    for name in ("a.jpg", "sub/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    for name in TABLES:
        write_table(folder / name, ROWS)
    return tmp_path / "in"


def samples(uri: str | Path, **options: Any) -> list[Sample]:
    source = open_source(str(uri), SourceOptions(**options))
    refs = list(source.read(Part(0, tuple(source.entries()))))
    assert [ref.notes().caption for ref in refs] == [ref.load().caption for ref in refs]
    return [ref.load() for ref in refs]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_in_a_store_gives_what_it_gives_on_a_disk(root: Path, name: str) -> None:
    url, expected = put(root), samples(root / "tables" / name)
    assert [(sample.key, sample.data) for sample in expected] == [("a", b"a.jpg"), ("sub/b", b"sub/b.jpg")]
    assert expected[0].attributes["captions"] == ["one", "another"]
    assert samples(f"{url}/tables/{name}") == expected
    assert samples(f"{url}/tables", table=name) == expected
    store = fsspec.filesystem("memory")
    store.pipe_file(f"{url}/only-{name}/{name}", (root / "tables" / name).read_bytes())
    if name == "t.parquet":
        assert [e.key for e in open_source(f"{url}/only-{name}").entries()] == ["a", "sub/b"]
    before = list(open_source(f"{url}/tables/{name}").entries())
    assert before == list(open_source(f"{url}/tables/{name}").entries())
    assert [entry.num_bytes for entry in before] == [-1, -1], "nothing is asked about single images"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_at_a_web_address_is_copied_however_often_the_connection_breaks(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64)
    expected = samples(root / "tables" / name)
    with serve(root) as server:
        server.cuts, server.times = {name: 20}, 3
        url = f"{server.url}/tables/{name}?X-Amz-Signature=hunter2"
        source = open_source(url)
        entries = tuple(source.entries())
        found = [ref.load() for ref in source.read(Part(0, entries))]
        assert server.times == 0
    assert found == expected
    assert "hunter2" not in repr((source.uri, entries, found))
    assert source.uri == f"{server.url}/tables/{name}"


def test_from_s3_the_shards_are_those_of_the_local_table(tmp_path: Path) -> None:
    images = make_folder(tmp_path / "in/images", 5)
    names = [path.relative_to(tmp_path / "in") for path in images.rglob("*.jpg")]
    rows = [{"file_name": f"../{name}", "text": name.stem} for name in names]
    write_table(tmp_path / "in/data/list.csv", rows)

    def encode(source: str, out: str) -> Summary:
        return encode_dataset(source, tmp_path / out, tiny_config(), RunOptions(device="cpu", part_size=3, workers=2))

    encode(str(tmp_path / "in/data/list.csv"), "local")
    with s3_server():
        import s3fs

        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.put(str(tmp_path / "in"), f"{BUCKET}/in", recursive=True)
        url = f"s3://{BUCKET}/in/data/list.csv"
        encode(url, "out")
        for path in sorted((tmp_path / "local/parts").glob("*.safetensors")):
            assert (tmp_path / "out/parts" / path.name).read_bytes() == path.read_bytes(), path.name
        assert encode(url, "out").device is None, "nothing is left to do"
        store.put(str(write_table(tmp_path / "list.csv", [*rows[:-1], rows[-1] | {"text": "edited"}])), url)
        again = encode(url, "out")
        assert (again.encoded, again.num_samples) == (0, 5), "the caption is new, the latent is not"


def test_a_remote_table_names_no_file_of_this_machine(tmp_path: Path, root: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    deep = "../" * 40 + str(secret).lstrip("/")
    named = [str(secret), f"file://{secret}", "~/secret.jpg", f"pipe:cat {secret}", f"zip://x::file://{secret}", deep]
    write_table(root / "tables/t.csv", [{"key": str(number), "path": place} for number, place in enumerate(named)])
    url = put(root)
    source = open_source(f"{url}/tables/t.csv")
    refs = list(source.read(Part(0, tuple(source.entries()))))
    assert len(refs) == len(named)
    for ref in refs:
        with pytest.raises(SampleSkipped, match=r"unreadable: a remote table names .*: not read"):
            ref.load()


def test_names_with_odd_characters_are_found_beside_a_web_address(root: Path) -> None:
    write_table(root / "tables/odd.csv", [{"path": "50% #1?.jpg"}])
    (root / "tables/50%25%20%231%3F.jpg").write_bytes(b"odd")  # as the server is asked for it
    with serve(root) as server:
        (sample,) = samples(f"{server.url}/tables/odd.csv")
    assert (sample.key, sample.data) == ("50% #1?", b"odd")


def test_what_is_wrong_with_a_table_is_said_with_its_url(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(root)
    store = fsspec.filesystem("memory")
    store.pipe_file(f"{url}/bad.jsonl", b'{"path": "a.jpg"}\n{')
    store.pipe_file(f"{url}/bad.csv", b"path,text\na.jpg,one,two\n")
    store.pipe_file(f"{url}/bad.parquet", b"none")
    for name, words in (
        ("bad.jsonl", r"memory://.*/bad\.jsonl, line 2: no JSON"),
        ("bad.csv", r"memory://.*/bad\.csv, line 2: 3 cells, where the header has 2"),
    ):
        with pytest.raises(SourceError, match=words):
            list(open_source(f"{url}/{name}").entries())
    for name in ("gone.csv", "gone.jsonl", "gone.parquet"):
        with pytest.raises(MissingFileError, match=rf"^There is no file memory://.*/{name}\. Check the address\.$"):
            list(open_source(f"{url}/{name}").entries())

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(table_files.tempfile, "TemporaryFile", Full)
    with pytest.raises(SourceError, match=r"Can't keep a copy of memory://.*/t\.csv in .*No space left.* set TMPDIR"):
        list(open_source(f"{url}/tables/t.csv").entries())
