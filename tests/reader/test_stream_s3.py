"""A cache in an object store, spoken to through its protocol: moto's S3 on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dcae_cache import remote
from dcae_cache.errors import CacheError
from dcae_cache.reader.store import LocalStore, open_store
from dcae_cache.reader.stream import StreamOptions
from helpers.cutting_proxy import Proxy, cutting_proxy
from helpers.latents import make_cache

s3fs = pytest.importorskip("s3fs", reason="needs s3fs and moto, of the dev extra")
moto_server = pytest.importorskip("moto.server", reason="needs s3fs and moto, of the dev extra")

PARTS = 5


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        address = urlsplit("//{}:{}".format(*server.get_host_and_port()))
        with cutting_proxy(str(address.hostname), int(address.port or 0)) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                monkeypatch.setenv(name, "test")
            monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
            s3fs.S3FileSystem.clear_instance_cache()
            yield proxy
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.stop()


def test_a_cache_in_a_bucket(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = LocalStore(make_cache(tmp_path / "latents", [{(64, 64): 500}] * PARTS))
    bucket = s3fs.S3FileSystem()
    bucket.mkdir("training")
    bucket.put(str(local.folder), "training/latents", recursive=True)
    size = max(part["num_bytes"] for part in local.index()["parts"])
    options = StreamOptions(cache_limit=3 * size, folder=tmp_path / "mirror")
    store = open_store("s3://training/latents", options)
    assert store.index() == local.index()
    for part in local.index()["parts"]:
        assert store.table(part["name"]).read_bytes() == local.table(part["name"]).read_bytes()
        assert store.shard(part["name"]).read_bytes() == local.shard(part["name"]).read_bytes()
        kept = sum(path.stat().st_size for path in (tmp_path / "mirror" / "parts").iterdir())
        assert kept <= 3 * size + size, "at most one that is fetched ahead on top"

    proxy.cuts = [size // 2]
    assert store.shard("part-000000").read_bytes() == local.shard("part-000000").read_bytes()
    assert proxy.made == 1

    shard = local.shard("part-000001").read_bytes()
    bucket.pipe("training/latents/parts/part-000001.safetensors", b"\xff" + shard[1:])
    with pytest.raises(CacheError, match=r"part-000001 of s3://training/latents is damaged"):
        store.shard("part-000001")
    bucket.rm("training/latents/parts/part-000001.safetensors")
    with pytest.raises(CacheError, match=r"part-000001 of s3://training/latents can't be fetched: There is no file"):
        store.shard("part-000001")
