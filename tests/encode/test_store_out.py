"""Caches written to an object store: the same files as in a folder, however often a run is killed; moto's S3."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from dcae_cache import remote
from dcae_cache.encode.store_lock import LOCK_NAME, store_locked
from dcae_cache.errors import CacheError
from dcae_cache.object_store import ObjectStore
from helpers.images import encode, encoded_image, make_folder
from helpers.s3 import BUCKET, objects, s3_server
from helpers.warm_command import WarmCommand

RECIPE = ("--model", "f32c32-tiny", "--resolution", 128, "--dtype", "fp32", "--max-aspect", 2.0, "--bucket-step", 64)
RUN = ("--device", "cpu", "--workers", 2, "--part-size", 8, "--batch-size", 3)
# Dies when S3 is asked for the n-th time, n being in a file: before the request goes out, or after the answer came.
PREPARE = """
import os, pathlib, signal, s3fs
moment = pathlib.Path(os.environ["DIE_AT"])
if moment.exists():
    left = [int(moment.read_text())]
    real = s3fs.S3FileSystem._call_s3
    async def call(self, *arguments, **settings):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await real(self, *arguments, **settings)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    s3fs.S3FileSystem._call_s3 = call
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server() as settings:
        folder = tmp_path_factory.mktemp("s3")
        yield settings | {"DIE_AT": str(folder / "die-at"), "XDG_CACHE_HOME": str(folder / "user")}


@pytest.fixture(scope="module")
def command(environment: dict[str, str]) -> Iterator[WarmCommand]:
    with WarmCommand(PREPARE, **environment) as command:
        yield command


def _expected(photos: Path, tmp_path: Path) -> dict[str, bytes]:
    encode(photos, tmp_path / "local")
    paths = [path for path in (tmp_path / "local").rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(tmp_path / "local")): path.read_bytes() for path in paths}


def _kill_and_compare(command: WarmCommand, moments: Path, photos: Path, tmp_path: Path, kills: int) -> None:
    """Kill runs at drawn moments, then let one end: the objects are the files of an undisturbed run."""
    expected = _expected(photos, tmp_path)
    out = f"s3://{BUCKET}/{tmp_path.name}"
    draw = random.Random(kills)
    killed = 0
    while killed < kills:
        moments.write_text(str(draw.randint(1, 60)))
        scratch = tmp_path / f"scratch{draw.randint(0, 1)}"  # now and then a machine that has nothing of it
        command.start("encode", photos, "--out", out, *RECIPE, *RUN, "--scratch", scratch)
        done = command.finish()
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        killed += done.returncode != 0
        found = objects(tmp_path.name)
        assert set(found) <= {*expected, ".lock.json"}
        for name, data in found.items():
            assert name in (".lock.json", "index.json", "skipped.jsonl") or data == expected[name], name
            if name.endswith(".parquet") and name != "plan.parquet":
                assert name.replace(".parquet", ".safetensors") in found, "a part with a table is whole"
    moments.unlink()
    command.run("encode", photos, "--out", out, *RECIPE, *RUN, "--scratch", tmp_path / "scratch0")
    assert objects(tmp_path.name) == expected


def test_killed_three_times(command: WarmCommand, environment: dict[str, str], photos: Path, tmp_path: Path) -> None:
    _kill_and_compare(command, Path(environment["DIE_AT"]), photos, tmp_path, 3)


@pytest.mark.slow
def test_killed_twenty_times(command: WarmCommand, environment: dict[str, str], photos: Path, tmp_path: Path) -> None:
    _kill_and_compare(command, Path(environment["DIE_AT"]), photos, tmp_path, 20)


def _lock(tmp_path: Path, **holder: object) -> ObjectStore:
    store = ObjectStore(f"s3://{BUCKET}/{tmp_path.name}")
    store.replace(LOCK_NAME, json.dumps({"id": "other", "time": time.time(), **holder}).encode())
    return store


def test_one_run_at_a_time(command: WarmCommand, photos: Path, tmp_path: Path) -> None:
    run = ("encode", photos, "--out", f"s3://{BUCKET}/{tmp_path.name}", *RECIPE, *RUN, "--scratch", tmp_path)
    for holder in ({"host": "elsewhere", "pid": 1}, {"host": socket.gethostname(), "pid": os.getpid()}):
        store = _lock(tmp_path, **holder)
        refused = command.run(*run, expect=1)
        said = f"Another run is writing to s3://{BUCKET}/{tmp_path.name} (host {holder['host']}, pid {holder['pid']})"
        assert said in refused.stderr
        assert set(store.files()) == {LOCK_NAME}, "nothing was written"
    gone = (
        {"host": "elsewhere", "pid": 1, "time": time.time() - 700},
        {"host": socket.gethostname(), "pid": _ended()},
    )
    for holder in gone:
        store = _lock(tmp_path, **holder)
        assert "nothing keeps a second run" not in command.run(*run).stderr
        assert LOCK_NAME not in store.files()


def _ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_store_without_conditional_writes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(f"file://{tmp_path}")
    monkeypatch.setattr(ObjectStore, "create", lambda self, name, data: self.replace(name, data) is None)
    heard: list[str] = []
    with store_locked(store, heard.append):
        assert set(store.files()) == {LOCK_NAME}
    assert "nothing keeps a second run on another machine out" in heard[0]
    assert store.files() == {}


def test_a_cache_that_changed_or_is_pruned(command: WarmCommand, tmp_path: Path) -> None:
    images, out = make_folder(tmp_path / "photos", 20), f"s3://{BUCKET}/{tmp_path.name}"
    run = ("encode", images, "--out", out, *RECIPE, *RUN, "--scratch", tmp_path)
    command.run(*run)
    scratch = next(path for path in tmp_path.iterdir() if (path / "plan.parquet").exists())
    assert not list(scratch.rglob("*.safetensors")), "what was sent is not kept here"
    nothing = command.run(*run)
    assert f"Nothing to encode: {out} is up to date." in nothing.stderr
    for number in range(8):  # a whole part
        next(images.rglob(f"img{number:03d}.jpg")).unlink()
    next(images.rglob("img010.jpg")).write_bytes(encoded_image(300, 200, seed=99))
    command.run(*run, "--prune")
    found = objects(tmp_path.name)
    keys = set(pq.read_table(io.BytesIO(found["plan.parquet"]))["key"].to_pylist())
    tables = [name for name in found if name.startswith("parts/") and name.endswith(".parquet")]
    assert len(keys) == 12
    assert {key for name in tables for key in pq.read_table(io.BytesIO(found[name]))["key"].to_pylist()} == keys
    for name in tables:
        shard = found[name.replace(".parquet", ".safetensors")]
        metadata = pq.read_schema(io.BytesIO(found[name])).metadata
        assert hashlib.sha256(shard).hexdigest() == metadata[b"dcae_cache.shard_sha256"].decode()
    assert sum(name.endswith(".safetensors") for name in found) == len(tables)
    refused = command.run(*run, "--flip", expect=1)
    assert f"{out} was made with another recipe: flip" in refused.stderr
    assert objects(tmp_path.name) == found
    command.run(*run, "--flip", "--overwrite", "--yes")
    assert json.loads(objects(tmp_path.name)["index.json"])["recipe"]["flip"]


def test_settings_that_need_a_folder_are_refused(command: WarmCommand, photos: Path, tmp_path: Path) -> None:
    run = ("encode", photos, "--out", f"s3://{BUCKET}/{tmp_path.name}", *RECIPE, *RUN, "--scratch", tmp_path)
    assert "--part-range needs a folder" in command.run(*run, "--part-range", "0/2", expect=2).stderr
    assert "--repair needs the shards at hand" in command.run(*run, "--repair", expect=2).stderr
    refused = command.run("encode", photos, "--out", "s3://no-such-bucket/x", *RECIPE, *RUN, expect=1)
    assert "Can't" in refused.stderr
    assert "s3://no-such-bucket/x" in refused.stderr
    assert "very-secret-key" not in refused.stderr
    assert objects(tmp_path.name) == {}


def test_what_arrives_otherwise_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.0)
    (tmp_path / "file").write_bytes(b"content" * 100)
    store = ObjectStore(f"file://{tmp_path}/store")
    real, damaged = LocalFileSystem.put_file, iter([b"content" * 99, b"CONTENT" * 100])

    def put_file(self: LocalFileSystem, source: str, target: str, **settings: object) -> None:
        data = next(damaged, None)
        if data is None:
            real(self, source, target, **settings)
        else:
            Path(target).write_bytes(data)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)
    store.put(tmp_path / "file", "parts/a")
    assert (tmp_path / "store" / "parts" / "a").read_bytes() == b"content" * 100
    damaged = iter([b"never right"] * 100)
    with pytest.raises(CacheError, match=r"Can't write file://.*/store/parts/a: 11 bytes arrived of 700"):
        store.put(tmp_path / "file", "parts/a")
