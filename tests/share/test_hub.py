"""Caches pushed to a hub on loopback and pulled from there: kills, damage, refusals, and what must not be told."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from dcae_cache import LatentDataset
from dcae_cache.cache.index import load_index
from dcae_cache.cache.integrity import check_integrity
from helpers.hub_server import HubServer, Repo
from helpers.images import encode
from helpers.tars import make_tar, triples
from helpers.warm_command import WarmCommand

RECIPE = ("--model", "f32c32-tiny", "--resolution", 128, "--dtype", "fp32", "--max-aspect", 2.0, "--bucket-step", 64)
TOKEN = "hf_writetoken"
REPO = "owner/photos"
# One part a commit, so that even these few are several; and no waiting between the client's attempts.
PREPARE = (
    "import time; time.sleep = lambda seconds: None; import dcae_cache.share.push as push; push._PARTS_AT_ONCE = 1"
)


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer({}, write_token=TOKEN) as hub:
        yield hub


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    """Nothing on it, and nobody was there."""
    for kept in (server.repos, server.log, server.cuts, server.storage, server.sent, server.commits):
        kept.clear()
    server.on_sent = lambda count: None
    return server


@pytest.fixture(scope="module")
def command(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmCommand]:
    environment = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        "HF_DEBUG": "1",  # the client logs every request then
        "NO_PROXY": "127.0.0.1,localhost",
    }
    with WarmCommand(PREPARE, **environment) as command:
        yield command


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _parts(files: dict[str, bytes]) -> dict[str, bytes]:
    return {place: data for place, data in files.items() if place.startswith("parts/")}


def test_push_and_pull(hub: HubServer, command: WarmCommand, cache: Path, tmp_path: Path) -> None:
    said = command.run("push", cache, REPO, "--private", "--license", "cc-by-4.0", "--token", TOKEN, "--json")
    files = hub.repos[REPO].files
    assert hub.repos[REPO].visibility == "private"
    assert _parts(files) == _parts(_files(cache)), "of a folder not one byte of the parts says where it was"
    assert hub.commits == [*(f"Add part-{n:06d} to part-{n:06d}" for n in range(3)), "Add the index of 3 parts"]
    assert json.loads(said.stdout) == {
        "url": f"hf://datasets/{REPO}",
        "num_files": 11,
        "num_bytes": json.loads(said.stdout)["num_bytes"],
        "sent_files": 11,
        "sent_bytes": json.loads(said.stdout)["num_bytes"],
    }
    picture = Image.open(io.BytesIO(files["samples.jpg"]))
    assert picture.size == (4 * 264 + 8, 2 * 264 + 8)
    assert picture.convert("L").getextrema()[0] < 200

    pulled = command.run("pull", REPO, "--out", tmp_path / "pulled", "--json")
    assert json.loads(pulled.stdout)["commit"] == hub.repos[REPO].commit
    assert _files(tmp_path / "pulled") == {place: files[place] for place in files if place != ".gitattributes"}
    assert not (tmp_path / "pulled" / ".cache").exists()
    assert check_integrity(tmp_path / "pulled") == []
    again = command.run("pull", REPO, "--out", tmp_path / "pulled")
    assert "every hash is right" in again.stdout


def test_the_card(hub: HubServer, command: WarmCommand, cache: Path) -> None:
    command.run("push", cache, REPO, "--no-pictures", "--token", TOKEN)
    card, index = hub.repos[REPO].files["README.md"].decode(), load_index(cache)
    _, front, body = card.split("---\n", 2)
    values = yaml.safe_load(front)
    (config,) = values["configs"]
    assert config["data_files"] == [{"split": "train", "path": "parts/*.parquet"}]
    assert "license" not in values
    assert values["size_categories"] == ["n<1K"]
    assert f'LatentDataset("hf://datasets/{REPO}")' in body
    for name, value in index["recipe"].items():
        assert f"| {name} | {'none' if value is None else f'`{value}`'} |" in body
    for bucket, count in index["buckets"].items():
        assert f"| {bucket} | {count} |" in body
    last = len(index["statistics"]["mean"]) - 1
    assert f"| {last} | {index['statistics']['mean'][last]:+.6f} | {index['statistics']['std'][last]:.6f} |" in body
    assert "No samples are shown: whoever uploaded it left them out." in body
    assert "samples.jpg" not in hub.repos[REPO].files

    command.run("push", cache, REPO, "--no-pictures", "--license", "mit", "--token", TOKEN)
    assert 'license: "mit"' in hub.repos[REPO].files["README.md"].decode(), "one that nobody edited is made anew"
    edited = hub.repos[REPO].files["README.md"].replace(b"[More information needed]", b"Doe et al., 2026")
    hub.repos[REPO].files["README.md"] = edited
    kept = command.run("push", cache, REPO, "--token", TOKEN)
    assert "has a README.md of its own, which stays as it is" in kept.stderr
    assert hub.repos[REPO].files["README.md"] == edited


def test_killed_pushes_go_on_and_send_nothing_twice(hub: HubServer, command: WarmCommand, cache: Path) -> None:
    process = 0

    def kill(count: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # two files may arrive at once
            os.kill(process, signal.SIGKILL)

    hub.on_sent = kill
    for _ in range(3):  # each is killed when the first file that it sends has arrived
        process = command.start("push", cache, REPO, "--no-pictures", "--token", TOKEN)
        assert command.finish().returncode == -signal.SIGKILL
        assert "index.json" not in hub.repos[REPO].files, "a repo with an index is whole"
    hub.on_sent = lambda count: None
    command.run("push", cache, REPO, "--no-pictures", "--token", TOKEN)
    assert len(hub.sent) == len(set(hub.sent)) == 7, "three shards, three tables, the plan"
    assert _parts(hub.repos[REPO].files) == _parts(_files(cache))
    commits = len(hub.commits)
    last = command.run("push", cache, REPO, "--no-pictures", "--token", TOKEN)
    assert "Sent 0 of 10 files, 0 B" in last.stderr
    assert (len(hub.sent), len(hub.commits)) == (7, commits)


def test_a_cache_that_changed(hub: HubServer, command: WarmCommand, photos: Path, tmp_path: Path) -> None:
    images = shutil.copytree(photos, tmp_path / "photos")
    encode(images, tmp_path / "latents")
    command.run("push", tmp_path / "latents", REPO, "--no-pictures", "--token", TOKEN)
    hub.repos[REPO].files["notes.txt"] = b"by its owner"
    command.run("pull", REPO, "--out", tmp_path / "pulled")
    (images / "class0" / "img000.jpg").unlink()
    shutil.copy(images / "class0" / "img003.jpg", images / "class0" / "img900.jpg")
    encode(images, tmp_path / "latents")
    hub.sent.clear()
    command.run("push", tmp_path / "latents", REPO, "--no-pictures", "--token", TOKEN)
    assert _parts(hub.repos[REPO].files) == _parts(_files(tmp_path / "latents"))
    assert len(hub.sent) == 3, "the new part's files and the plan"
    hub.repos[REPO].files |= dict.fromkeys(["parts/part-000009.parquet", "parts/part-000009.safetensors"], b"old")
    command.run("push", tmp_path / "latents", REPO, "--no-pictures", "--token", TOKEN)
    assert _parts(hub.repos[REPO].files) == _parts(_files(tmp_path / "latents"))
    assert hub.repos[REPO].files["notes.txt"] == b"by its owner"
    command.run("pull", REPO, "--out", tmp_path / "pulled")
    assert _parts(_files(tmp_path / "pulled")) == _parts(_files(tmp_path / "latents"))

    encode(images, tmp_path / "pulled", part_size=2)  # no new image, so nothing to do; but from another folder now
    shutil.copy(images / "class0" / "img003.jpg", images / "class0" / "img901.jpg")
    encode(images, tmp_path / "pulled")
    before = _files(tmp_path / "pulled")
    refused = command.run("pull", REPO, "--out", tmp_path / "pulled", expect=1)
    assert "has changed since it was pulled" in refused.stderr
    assert _files(tmp_path / "pulled") == before


def test_a_branch(hub: HubServer, command: WarmCommand, cache: Path, tmp_path: Path) -> None:
    command.run("push", cache, REPO, "--no-pictures", "--revision", "v2", "--token", TOKEN)
    assert "index.json" not in hub.repos[REPO].files
    assert _parts(hub.repos[f"{REPO}@v2"].files) == _parts(_files(cache))
    command.run("pull", REPO, "--revision", "v2", "--out", tmp_path / "pulled")
    assert _parts(_files(tmp_path / "pulled")) == _parts(_files(cache))


def test_no_folder_of_the_maker_is_told(hub: HubServer, command: WarmCommand, tmp_path: Path) -> None:
    home = tmp_path / "home of jane"
    for number in range(2):
        make_tar(home / "tars" / f"{number}.tar", [*triples(10 * number, 2), (f"bad{number}.jpg", b"no image")])
    shutil.copytree(Path("dcae_cache/models/f32c32-tiny").resolve(), home / "my-model")
    pattern = f"{home}/tars/{{0..1}}.tar"
    encode(Path(pattern), tmp_path / "latents", model=str(home / "my-model"))
    assert any(b"home of jane" in data for data in _files(tmp_path / "latents").values())
    command.run("push", tmp_path / "latents", REPO, "--token", TOKEN)
    for place, data in hub.repos[REPO].files.items():
        assert b"home of jane" not in data, place
        if place.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            assert "home of jane" not in str(table.to_pydict()) + str(table.schema.metadata), place
    command.run("pull", REPO, "--out", tmp_path / "pulled")
    command.run("verify", tmp_path / "pulled", "--integrity-only")
    command.run("verify", tmp_path / "pulled", "--source", pattern, "--model", home / "my-model", "--device", "cpu")
    shards = [place for place in hub.repos[REPO].files if place.endswith(".safetensors")]
    assert all(hub.repos[REPO].files[place] == (tmp_path / "latents" / place).read_bytes() for place in shards)
    command.run("info", tmp_path / "pulled", "--finalize")
    assert load_index(tmp_path / "pulled")["complete"], "tables and plan still belong together"
    hub.sent.clear()
    command.run("push", tmp_path / "latents", REPO, "--token", TOKEN)
    assert hub.sent == [], "what is made for the push is the same each time"

    command.run("push", tmp_path / "latents", REPO, "--with-paths", "--token", TOKEN)
    pushed = hub.repos[REPO].files
    assert _parts(pushed) == _parts(_files(tmp_path / "latents"))
    assert pushed["index.json"] == (tmp_path / "latents" / "index.json").read_bytes()


def test_tars_of_one_name_stay_apart_on_their_way(hub: HubServer, command: WarmCommand, tmp_path: Path) -> None:
    home = tmp_path / "home of jane"
    make_tar(home / "tars/a/0.tar", triples(0, 2))
    make_tar(home / "tars/b/0.tar", triples(10, 2))
    encode(home / "tars", tmp_path / "latents")
    command.run("push", tmp_path / "latents", REPO, "--no-pictures", "--token", TOKEN)
    command.run("pull", REPO, "--out", tmp_path / "pulled")
    plan = pq.read_table(tmp_path / "pulled/plan.parquet")
    assert plan["location"].to_pylist() == plan["key"].to_pylist() == ["a/0.tar", "b/0.tar"]
    sources = [path for file in sorted((tmp_path / "pulled/parts").glob("*.parquet"))
               for path in pq.read_table(file)["source"].to_pylist()]  # fmt: skip
    assert sources == [f"{tar}/0.tar/{number:09d}.jpg" for tar, number in (("a", 0), ("a", 1), ("b", 10), ("b", 11))]
    for cache in ("latents", "pulled"):
        command.run("verify", tmp_path / cache, "--source", home / "tars", "--device", "cpu")
    one, other = (LatentDataset(tmp_path / name) for name in ("latents", "pulled"))
    assert len(other) == 4
    assert all(torch.equal(one[number]["latents"], other[number]["latents"]) for number in range(4))
    (home / "tars").rename(home / "elsewhere")
    command.run("verify", tmp_path / "pulled", "--source", home / "elsewhere", "--device", "cpu")
    for old, new in (("a", "c"), ("b", "d")):
        (home / "elsewhere" / old).rename(home / "elsewhere" / new)
    refused = command.run("verify", tmp_path / "pulled", "--source", home / "elsewhere", "--device", "cpu", expect=1)
    assert "has 2 files called 0.tar, and their folders don't tell which of them was a/0.tar" in refused.stderr
    refused = command.run("encode", home / "elsewhere", "--out", tmp_path / "pulled", *RECIPE, expect=1)
    assert "is in this source. The cache was made from **/*.tar: give that source" in refused.stderr


def test_what_is_damaged_is_not_sent(hub: HubServer, command: WarmCommand, cache: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cache, tmp_path / "latents")
    shard = copy / "parts" / "part-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    refused = command.run("push", copy, REPO, "--token", TOKEN, expect=1)
    assert "part-000001.safetensors is damaged" in refused.stderr
    assert set(_parts(hub.repos[REPO].files)) == {
        f"parts/part-000000.{suffix}" for suffix in ("safetensors", "parquet")
    }
    table = copy / "parts" / "part-000000.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    refused = command.run("push", copy, REPO, "--token", TOKEN, expect=1)
    assert "part-000000.parquet is not what index.json says" in refused.stderr
    index = load_index(cache) | {"complete": False}
    from dcae_cache.cache.index import save_index

    save_index(copy, index)
    refused = command.run("push", copy, REPO, "--token", TOKEN, expect=1)
    assert "isn't complete. Run the same encode command again" in refused.stderr


def test_what_arrives_damaged(hub: HubServer, command: WarmCommand, cache: Path, tmp_path: Path) -> None:
    command.run("push", cache, REPO, "--no-pictures", "--token", TOKEN)
    files, place = hub.repos[REPO].files, "parts/part-000001.safetensors"
    whole, files[place] = files[place], files[place][:-1] + b"\x55"
    out = tmp_path / "pulled"
    refused = command.run("pull", REPO, "--out", out, expect=1)
    assert f"{REPO} did not arrive whole in {out}: part-000001: the shard's sha256" in refused.stderr
    assert not (out / place).exists()
    assert not (out / "index.json").exists()
    files[place] = whole
    hub.repos[REPO].commit = "5" * 40
    asked = len(hub.downloads())
    command.run("pull", REPO, "--out", out)
    assert check_integrity(out) == []
    fetched = [request.path for request in hub.downloads()[asked:] if request.path.startswith("/cdn/")]
    assert len(fetched) <= 2, "only what was damaged"


def test_refusals_are_one_line_and_keep_secrets(
    hub: HubServer, command: WarmCommand, cache: Path, tmp_path: Path
) -> None:
    files = {"index.json": (cache / "index.json").read_bytes()}
    hub.repos |= {
        "owner/gated": Repo(files, token="hf_other"),
        "owner/broken": Repo(files, status=500),
        "owner/empty": Repo({"README.md": b"x"}),
    }
    pull = ("pull", "--out", tmp_path / "pulled", "--token", TOKEN)
    push = ("push", cache, REPO, "--no-pictures", "--token")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("x")
    cases = [
        ((*pull, "owner/gated"), 1, "owner/gated (a data set on the hub) is gated: accept its terms"),
        ((*pull, "owner/nowhere"), 1, "owner/nowhere (a data set on the hub) is not there, or it is private"),
        ((*pull, "owner/empty"), 1, "owner/empty holds no cache: it has no index.json"),
        ((*pull, "owner/empty", "--revision", "v9"), 1, "has no revision 'v9'"),
        ((*pull, "owner/broken"), 1, "the hub answered HTTP 500"),
        ((*pull, "not-a-repo"), 2, "A repo on the hub is called owner/name, not 'not-a-repo'"),
        ((*push, "hf_wrongtoken"), 1, "the hub refused make it (HTTP 403). Pass a --token that may write"),
        (("pull", "owner/empty", "--out", tmp_path / "full"), 1, "holds no cache"),
        (("push", tmp_path / "full", REPO), 1, "is not a finished cache"),
    ]
    for arguments, code, said in cases:
        done = command.run(*arguments, expect=code)
        assert said in done.stderr, done.stderr
        assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
        assert not any(secret in done.stderr + done.stdout for secret in (TOKEN, "hf_wrongtoken", "hf_other")), (
            done.stderr
        )
    hub.repos["owner/whole"] = Repo(files)
    done = command.run("pull", "owner/whole", "--out", tmp_path / "full", expect=1)
    assert "is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


READ = """
import hashlib, sys
from dcae_cache import LatentDataset
dataset = LatentDataset(sys.argv[1])
for number in range(len(dataset)):
    sample = dataset[number]
    print(sample["key"], hashlib.sha256(sample["latents"].numpy().tobytes()).hexdigest())
"""


def test_what_was_pushed_is_read_without_a_copy(
    hub: HubServer, command: WarmCommand, cache: Path, tmp_path: Path
) -> None:
    command.run("push", cache, REPO, "--no-pictures", "--token", TOKEN)
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "XDG_CACHE_HOME": str(tmp_path / "user"),
    }
    arguments = [sys.executable, "-c", READ, f"hf://datasets/{REPO}"]
    done = subprocess.run(arguments, env=os.environ | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    local = LatentDataset(cache)
    expected = [
        f"{sample['key']} {hashlib.sha256(sample['latents'].numpy().tobytes()).hexdigest()}"
        for sample in (local[number] for number in range(len(local)))
    ]
    assert done.stdout.splitlines() == expected
