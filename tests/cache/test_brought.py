"""Caches at a URL, for the commands that work on files: as good as those in a folder; moto's S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcae_cache import object_store, remote
from dcae_cache.cache.brought import brought
from dcae_cache.decode.image_files import decode_samples
from dcae_cache.errors import CacheError
from dcae_cache.object_store import ObjectStore
from dcae_cache.verify import VerifyOptions, verify_cache
from helpers.command import run
from helpers.file_server import serve
from helpers.s3 import BUCKET, s3_server

SHARD = "parts/part-000001.safetensors"


@pytest.fixture
def store(cache: Path) -> Iterator[ObjectStore]:
    """The cache of all tests, in a bucket."""
    with s3_server():
        store = ObjectStore(f"s3://{BUCKET}/latents")
        for path in cache.rglob("*"):
            if path.is_file() and not path.name.startswith(".") and ".derived" not in path.parts:
                store.put(path, str(path.relative_to(cache)))
        yield store


def test_verify_decode_and_info_of_a_url(store: ObjectStore, cache: Path, photos: Path, tmp_path: Path) -> None:
    options = VerifyOptions(samples=3, source=str(photos), device="cpu")
    here, away = verify_cache(cache, options), verify_cache(store.name, options)
    assert away.name == store.name
    assert away.ok
    assert away.scores == here.scores

    keys = [*away.checked]
    for place, out in ((cache, "here"), (store.name, "away")):
        decode_samples(place, keys, tmp_path / out)
    for path in (tmp_path / "here").rglob("*.png"):
        assert (tmp_path / "away" / path.relative_to(tmp_path / "here")).read_bytes() == path.read_bytes()

    said = json.loads(run("info", store.name, "--json").stdout)
    assert said == json.loads(run("info", cache, "--json").stdout)
    assert store.name in run("verify", store.name, "--integrity-only").stdout
    assert "--finalize needs a cache in a folder" in run("info", store.name, "--finalize", expect=2).stderr


def test_damage_at_a_url_is_found(store: ObjectStore, tmp_path: Path) -> None:
    with brought(store.name) as here:
        assert not list(here.folder.rglob("*.safetensors")), "shards come when they are wanted"
        with here.shard("part-000001"):
            data = (here.folder / SHARD).read_bytes()
        assert not (here.folder / SHARD).exists()
        folder = here.folder
    assert not folder.exists()
    (tmp_path / "damaged").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    store.put(tmp_path / "damaged", SHARD)
    options = VerifyOptions(integrity_only=True)
    (finding,) = verify_cache(store.name, options).findings[:1]
    assert (finding.where, "sha256" in finding.what) == ("part-000001", True)
    store.delete([SHARD])
    assert "its shard is missing" in [finding.what for finding in verify_cache(store.name, options).findings]
    with pytest.raises(CacheError, match=rf"There is no file {store.name}/{SHARD}"), brought(store.name) as here:
        here.keep(["part-000000", "part-000001"])
    with pytest.raises(CacheError, match=rf"s3://{BUCKET}/nothing is not a finished cache: it has no index.json"):
        verify_cache(f"s3://{BUCKET}/nothing", options)


class CutLater(dict[str, int]):
    """Cuts of a file server, for three answers after the first five."""

    answers = 0

    def get(self, name: str, default: Any = None) -> Any:
        self.answers += name == SHARD.rpartition("/")[2]
        return 300 if 5 < self.answers <= 8 else default


def test_a_shard_that_breaks_off_is_taken_up_where_it_did(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(object_store, "_BLOCK", 512)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 512)
    name = SHARD.rpartition("/")[2]
    with serve(cache) as server:
        server.cuts = CutLater()
        with brought(f"{server.url}?token=very-secret-key") as here, here.shard("part-000001"):
            assert (here.folder / SHARD).read_bytes() == (cache / SHARD).read_bytes()
        asked = [int(range.removeprefix("bytes=").partition("-")[0]) for file, range in server.ranges if file == name]
        again = [start for start in asked if asked.count(start) > 1]
        assert len(again) == 4, "one block was cut three times"
        assert len(set(again)) == 1
        assert again[0] > 0
        server.cuts = {name: 300}
        with brought(server.url) as here:
            with pytest.raises(CacheError, match=r"part-000001\.safetensors broke off at byte 0 of \d+, and 5"):
                here.keep(["part-000001"])
            assert not (here.folder / SHARD).exists()
