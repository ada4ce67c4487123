"""A cache in a data set repo of the hub, in a process of its own: the hub's client reads its environment once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dcae_cache.reader.store import LocalStore
from helpers.hub_server import HubServer, Repo
from helpers.latents import make_cache

PARTS = 4
# Reads "URL part" line by line; says of each what the part is or what was wrong, and how much the disk holds then.
CODE = """
import hashlib, json, sys
from pathlib import Path
from dcae_cache import remote
from dcae_cache.errors import CacheError
from dcae_cache.reader import stream
from dcae_cache.reader.store import open_store
remote._FIRST_PAUSE, remote.BLOCK_BYTES, stream._BLOCK = 0.01, 8192, 4096
options = stream.StreamOptions(folder=sys.argv[1], cache_limit=int(sys.argv[2]))
for line in sys.stdin:
    url, part = line.split()
    try:
        found = hashlib.sha256(open_store(url, options).shard(part).read_bytes()).hexdigest()
    except CacheError as error:
        found = str(error)
    kept = sum(path.stat().st_size for path in (Path(sys.argv[1]) / "parts").iterdir())
    print(json.dumps({"found": found, "kept": kept}))
"""


def _read(hub: HubServer, tmp_path: Path, limit: int, asked: list[tuple[str, str]]) -> list[dict[str, Any]]:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "right-token"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "mirror"), str(limit)],
        input="\n".join(" ".join(pair) for pair in asked),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(make_cache(tmp_path / "latents", [{(64, 64): 800}] * PARTS))


def _repo(local: LocalStore) -> Repo:
    paths = (path for path in local.folder.rglob("*") if path.is_file())
    return Repo({str(path.relative_to(local.folder)): path.read_bytes() for path in paths}, token="right-token")


def test_a_cache_on_the_hub(local: LocalStore, tmp_path: Path) -> None:
    parts = local.index()["parts"]
    size = max(part["num_bytes"] for part in parts)
    repo = _repo(local)
    repo.files["parts/part-000003.safetensors"] = b"\xff" + repo.files["parts/part-000003.safetensors"][1:]
    repo.commit = "0" * 40
    with HubServer({"owner/name": repo}) as hub:
        hub.cuts = [100_000, 3000]  # the first block of the first part passes, the second one doesn't
        asked = [("hf://datasets/owner/name", part["name"]) for part in parts]
        *said, missing = _read(hub, tmp_path, 2 * size, [*asked, ("hf://datasets/owner/nowhere", "part-000000")])
        ranges = [request.range for request in hub.downloads() if request.path.startswith("/cdn/")]
    assert [line["found"] for line in said[:3]] == [part["sha256"] for part in parts[:3]]
    assert max(line["kept"] for line in said) <= 2 * size
    assert "part-000003 of hf://datasets/owner/name is damaged" in said[3]["found"]
    assert any(asked and not asked.startswith("bytes=0-") for asked in ranges)
    assert "hf://datasets/owner/nowhere can't be opened as a cache" in missing["found"]
    assert "right-token" not in json.dumps([*said, missing])
