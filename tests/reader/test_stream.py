"""A cache far away: checked, held to a size on disk, fetched once a machine, taken up again where it broke off."""

from __future__ import annotations

import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from dcae_cache import BucketBatchSampler, LatentDataset, remote
from dcae_cache.cache.index import load_index, save_index
from dcae_cache.errors import CacheError, DamagedIndexError, UsageError
from dcae_cache.reader.store import LocalStore, open_store
from dcae_cache.reader.stream import RemoteStore, StreamOptions
from helpers.file_server import FileServer, serve
from helpers.latents import make_cache

PARTS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 6 parts of about 32 KB. Read only."""
    return make_cache(tmp_path_factory.mktemp("made") / "latents", [{(64, 64): 500}] * PARTS)


@pytest.fixture
def server(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    shutil.copytree(made, tmp_path / "web" / "latents")
    with serve(tmp_path / "web") as server:
        yield server


def _open(server: FileServer, tmp_path: Path, *, limit: int | None = None, threads: int = 2) -> RemoteStore:
    options = StreamOptions(cache_limit=limit, folder=tmp_path / "mirror", threads=threads)
    store = open_store(f"{server.url}/latents", options)
    assert isinstance(store, RemoteStore)
    return store


def _names(store: RemoteStore) -> list[str]:
    return [part["name"] for part in store.index()["parts"]]


def _part_bytes(store: RemoteStore) -> int:
    return max(part["num_bytes"] for part in store.index()["parts"])


def _kept(tmp_path: Path) -> int:
    total = 0
    for path in (tmp_path / "mirror" / "parts").iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _asked(server: FileServer, name: str) -> list[str | None]:
    return [asked for file, asked in server.ranges if file == name]


def _wait_until(done: Callable[[], bool]) -> None:
    for _ in range(3000):
        if done():
            return
        time.sleep(0.01)
    pytest.fail("it never came about")


def test_all_files_arrive_whole_and_are_fetched_once(server: FileServer, made: Path, tmp_path: Path) -> None:
    store = _open(server, tmp_path)
    assert store.index() == load_index(made)
    local = LocalStore(made)
    for _ in range(2):
        for name in _names(store):
            assert store.shard(name).read_bytes() == local.shard(name).read_bytes()
            assert store.table(name).read_bytes() == local.table(name).read_bytes()
    assert len(_asked(server, "part-000003.safetensors")) == 1
    other = _open(server, tmp_path)
    assert other.shard("part-000003") == store.shard("part-000003")
    assert len(_asked(server, "part-000003.safetensors")) == 1, "another process finds what is there"


def test_a_cut_connection_is_taken_up_where_it_broke(
    server: FileServer, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    server.cuts, server.times = {"part-000001.safetensors": 3000}, 2
    shard = _open(server, tmp_path).shard("part-000001")
    assert shard.read_bytes() == LocalStore(made).shard("part-000001").read_bytes()
    server.cuts, server.times = {"part-000002.safetensors": 3000}, None
    server.cuts["part-000002.safetensors"] = 4095  # the last, shorter ranges pass; the first ones never do
    with pytest.raises(CacheError, match=r"part-000002 of http://.*/latents can't be fetched: .* broke off at byte 0"):
        _open(server, tmp_path).shard("part-000002")


def test_after_the_first_blocks_only_the_rest_is_asked_for(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    monkeypatch.setattr("dcae_cache.reader.stream._BLOCK", 4096)
    store = _open(server, tmp_path)
    path = "part-000001.safetensors"
    broken = iter([False, False, True])
    real = remote._Resuming._read

    def read(self: remote._Resuming, count: int) -> bytes:
        if path in self._url and next(broken, False):
            raise ConnectionResetError("cut")
        return real(self, count)

    monkeypatch.setattr(remote._Resuming, "_read", read)
    store.shard("part-000001")
    first_bytes = [
        int((asked or "bytes=0").removeprefix("bytes=").partition("-")[0]) for asked in _asked(server, path)
    ]
    assert first_bytes.count(0) == 1, "what had arrived is not asked for again"
    assert first_bytes == sorted(first_bytes)


def test_a_damaged_part_is_noticed_and_not_kept(server: FileServer, tmp_path: Path) -> None:
    shard = LocalStore(tmp_path / "web" / "latents").shard("part-000002")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    store = _open(server, tmp_path)
    with pytest.raises(CacheError, match=r"part-000002 of .* is damaged: parts/part-000002\.safetensors should"):
        store.shard("part-000002")
    assert not list((tmp_path / "mirror" / "parts").iterdir())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert store.shard("part-000002").read_bytes() == data


def test_what_a_transfer_damaged_is_fetched_again(server: FileServer, made: Path, tmp_path: Path) -> None:
    server.damaged = ["part-000000.parquet", "part-000000.safetensors"]
    store, local = _open(server, tmp_path), LocalStore(made)
    assert store.shard("part-000000").read_bytes() == local.shard("part-000000").read_bytes()
    assert store.table("part-000000").read_bytes() == local.table("part-000000").read_bytes()
    assert not server.damaged


def test_the_disk_holds_no_more_than_the_limit(server: FileServer, made: Path, tmp_path: Path) -> None:
    size = _part_bytes(_open(server, tmp_path))
    store, local = _open(server, tmp_path, limit=3 * size), LocalStore(made)
    for name in [*_names(store), *_names(store)]:
        assert store.shard(name).read_bytes() == local.shard(name).read_bytes()
        assert _kept(tmp_path) <= 3 * size
    assert store.max_mapped < 100, "what is mapped stays on the disk"
    fetched = len(server.ranges)
    for name in _names(store)[-3:]:
        store.shard(name)
    assert len(server.ranges) == fetched, "those used last are kept"
    store.shard("part-000003")  # now used later than part-000004
    store.shard("part-000000")
    asked = len(_asked(server, "part-000003.safetensors"))
    store.shard("part-000003")
    assert len(_asked(server, "part-000003.safetensors")) == asked


def test_many_threads_and_stores_under_one_limit(server: FileServer, made: Path, tmp_path: Path) -> None:
    """Each thread maps what it was handed before it asks for the next: nothing vanishes under its hands."""
    size = _part_bytes(_open(server, tmp_path))
    stores = [_open(server, tmp_path, limit=4 * size) for _ in range(2)]
    local = LocalStore(made)
    most = 0

    def read(number: int) -> None:
        nonlocal most
        store = stores[number % 2]
        for step in range(12):
            name = f"part-{(number + step) % PARTS:06d}"
            assert store.shard(name).read_bytes() == local.shard(name).read_bytes()
            most = max(most, _kept(tmp_path))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert most <= 4 * size + 4 * size, "one file for each thread may come on top"


def test_a_part_is_fetched_once_however_many_want_it(server: FileServer, tmp_path: Path) -> None:
    stores = [_open(server, tmp_path) for _ in range(4)]
    barrier = threading.Barrier(4)

    def read(store: RemoteStore) -> bytes:
        store.index()
        barrier.wait()
        return store.shard("part-000005").read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(read, stores))) == 1
    assert len(_asked(server, "part-000005.safetensors")) == 1


def test_parts_come_ahead_but_not_beyond_half_of_the_limit(server: FileServer, tmp_path: Path) -> None:
    size = _part_bytes(_open(server, tmp_path))
    store = _open(server, tmp_path, limit=4 * size)
    store.prefetch(_names(store))
    _wait_until(lambda: len(list((tmp_path / "mirror" / "parts").glob("part-*"))) == 2)
    server.ranges.clear()
    for name in _names(store)[:2]:
        store.shard(name)
    assert not server.ranges
    unlimited = _open(server, tmp_path)
    unlimited.prefetch(_names(store))
    _wait_until(lambda: len(list((tmp_path / "mirror" / "parts").glob("part-*"))) == PARTS)


def test_a_failure_ahead_is_told_where_the_part_is_asked_for(server: FileServer, tmp_path: Path) -> None:
    LocalStore(tmp_path / "web" / "latents").shard("part-000004").unlink()
    store = _open(server, tmp_path)
    store.prefetch(["part-000004", "part-000005"])
    _wait_until(lambda: bool(list((tmp_path / "mirror" / "parts").glob("part-000005*"))))
    with pytest.raises(CacheError, match=r"part-000004 of .* can't be fetched: There is no file .*part-000004"):
        store.shard("part-000004")


def test_what_a_killed_process_left_is_cleared_away(server: FileServer, tmp_path: Path) -> None:
    size = _part_bytes(_open(server, tmp_path))
    store = _open(server, tmp_path, limit=2 * size)
    (tmp_path / "mirror" / "parts" / ".part-000009.safetensors.tmp").write_bytes(b"x" * size)
    for name in _names(store)[:2]:
        store.shard(name)
    assert _kept(tmp_path) <= 2 * size
    assert not list((tmp_path / "mirror" / "parts").glob("*.tmp"))
    half = store.shard("part-000000")
    half.write_bytes(half.read_bytes()[:100])
    assert store.shard("part-000000").stat().st_size == size, "a file of another size is none of ours"


def test_a_part_made_again_is_another_file(server: FileServer, tmp_path: Path) -> None:
    old = _open(server, tmp_path)
    before = old.shard("part-000000").read_bytes()
    web = tmp_path / "web" / "latents"
    shutil.rmtree(web)
    make_cache(web, [{(64, 64): 501}])
    new = _open(server, tmp_path)
    assert new.shard("part-000000").read_bytes() == LocalStore(web).shard("part-000000").read_bytes() != before
    assert old.derived() != new.derived()
    assert old.stamp(old.index()) != new.stamp(new.index())
    for path in (tmp_path / "mirror" / "parts").iterdir():
        path.unlink()
    copy = pickle.loads(pickle.dumps(old))  # as a loader process gets it: with the index that the first one read
    with pytest.raises(CacheError, match="made anew meanwhile, open it again"):
        copy.shard("part-000000")


def test_limits_and_addresses_that_cannot_be_honoured(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`cache_limit` of 1000 bytes is too small .* Give at least \d+"):
        _open(server, tmp_path, limit=1000).index()
    for wrong in ({"cache_limit": 0}, {"threads": 0}):
        with pytest.raises(UsageError, match="must be at least 1"):
            StreamOptions(**wrong)
    with pytest.raises(CacheError, match=r"nowhere can't be opened as a cache: There is no file .*/index\.json"):
        open_store(f"{server.url}/nowhere", StreamOptions(folder=tmp_path / "m")).index()
    index = tmp_path / "web" / "latents" / "index.json"
    index.write_text(index.read_text().replace('"none"', '"nine"'))
    with pytest.raises(DamagedIndexError, match=r"http://.*index\.json is damaged"):
        _open(server, tmp_path).index()
    save_index(index.parent, load_index_unchecked(index) | {"version": 2})
    with pytest.raises(CacheError, match=r"is of version 2; this release reads version 1"):
        _open(server, tmp_path).index()


def load_index_unchecked(path: Path) -> dict[str, object]:
    import json

    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_passwords_and_signatures_are_not_shown(server: FileServer, tmp_path: Path) -> None:
    address = server.url.removeprefix("http://")
    query = "sig=very-secret&se=2030"
    store = open_store(f"http://me:pass-word@{address}/latents?{query}", StreamOptions(folder=tmp_path / "mirror"))
    assert store.root == f"http://{address}/latents"
    store.shard("part-000000")
    web = LocalStore(tmp_path / "web" / "latents")
    web.shard("part-000001").write_bytes(b"damaged")
    web.shard("part-000002").unlink()
    server.cuts = {"part-000003.safetensors": 100}
    said = []
    for name in ("part-000001", "part-000002", "part-000003"):
        with pytest.raises(CacheError) as caught:
            store.shard(name)
        said.append(str(caught.value))
    unreachable = open_store(f"http://me:pass-word@127.0.0.1:9/latents?{query}", StreamOptions(folder=tmp_path / "m"))
    with pytest.raises(CacheError) as caught:
        unreachable.index()
    said.append(str(caught.value))
    for text in said:
        assert not any(secret in text for secret in ("very-secret", "pass-word", "me:"))


def test_a_store_that_is_let_go_holds_nothing(server: FileServer, tmp_path: Path) -> None:
    size = _part_bytes(_open(server, tmp_path))
    for number in range(PARTS):
        _open(server, tmp_path, limit=2 * size).shard(f"part-{number:06d}")
    assert _kept(tmp_path) <= 2 * size


def test_a_folder_by_its_file_url_is_read_where_it_lies(made: Path) -> None:
    assert open_store(f"file://{made}").shard("part-000000").parent == made / "parts"
    assert isinstance(open_store(made), LocalStore)


def test_a_dataset_far_away_is_the_one_beside_it(server: FileServer, made: Path, tmp_path: Path) -> None:
    size = _part_bytes(_open(server, tmp_path))
    local = LatentDataset(made)
    far = LatentDataset(_open(server, tmp_path, limit=3 * size))
    assert len(far) == len(local) == PARTS * 500
    assert far.table(["key", "caption"]).equals(local.table(["key", "caption"]))
    numbers = list(range(0, len(local), 97))
    for first in range(0, len(numbers), 8):
        batch, expected = far.__getitems__(numbers[first : first + 8]), local.__getitems__(numbers[first : first + 8])
        assert torch.equal(batch.collated["latents"], expected.collated["latents"])
        assert batch.collated["caption"] == expected.collated["caption"]
    assert far.identity() == local.identity(), "a state of the one goes on with the other"
    assert _kept(tmp_path) <= 3 * size


def test_worker_processes_share_what_is_fetched(server: FileServer, tmp_path: Path) -> None:
    dataset = LatentDataset(_open(server, tmp_path))
    dataset.prefetch(range(600))
    sampler = BucketBatchSampler(dataset, batch_size=50)
    keys = [key for batch in DataLoader(dataset, batch_sampler=sampler, num_workers=2) for key in batch["key"]]
    assert sorted(keys) == sorted(f"k{number}" for number in range(PARTS * 500))
    fetched = [name for name, _ in server.ranges if name.endswith(".safetensors")]
    assert sorted(fetched) == [f"part-{number:06d}.safetensors" for number in range(PARTS)]
