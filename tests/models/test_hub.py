"""Models from a hub, over a hub-like server on loopback: what is fetched, what is kept, and every way it can fail."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from helpers.golden import load, write_diffusers, write_efficientvit
from helpers.hub_server import HubServer, Repo

pytest.importorskip("huggingface_hub")

SPEC = load("f32").spec


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    root = tmp_path_factory.mktemp("repos")

    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    native = files(write_efficientvit(root / "efficientvit", SPEC, "dc-ae-narrow-1.0"))
    diffusers = files(write_diffusers(root / "diffusers", SPEC, None, "encoder"))
    weights = root / "diffusers" / "diffusion_pytorch_model.safetensors"
    name = "diffusion_pytorch_model-00001-of-00001.safetensors"
    tensors = load_file(weights)
    save_file(tensors, root / name)
    index = json.dumps({"weight_map": dict.fromkeys(tensors, name)}).encode()
    extras = {"README.md": b"x", "assets/demo.gif": b"gif", "pytorch_model.bin": b"pickle"}
    return {
        "owner/narrow": Repo({**native, **extras}, tags=("v1",)),
        "owner/narrow-diffusers": Repo(diffusers),
        "owner/pipeline": Repo({"model_index.json": b"{}", **{f"vae/{key}": data for key, data in diffusers.items()}}),
        "owner/sharded": Repo(
            {
                "config.json": diffusers["config.json"],
                f"{weights.name}.index.json": index,
                name: (root / name).read_bytes(),
            }
        ),
        "owner/gated": Repo(diffusers, token="hf_good"),
        "owner/pickled": Repo({"config.json": diffusers["config.json"], "diffusion_pytorch_model.bin": b"pickle"}),
        "owner/other": Repo({"config.json": b'{"_class_name": "AutoencoderKL"}', "model.safetensors": b""}),
        "owner/broken": Repo(diffusers, status=500),
    }


class Client:
    """``resolve`` in another process, with that hub as its hub."""

    def __init__(self, url: str, home: Path, **environment: str) -> None:
        tests = Path(__file__).parents[1]
        settings = {
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", tests / "helpers" / "hub_client.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=kept | settings | environment,
        )

    def __call__(self, model: str, **arguments: object) -> dict:
        self.process.stdin.write(json.dumps({"model": model, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the client ended with {self.process.wait()}"
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server(repos):
    with HubServer(repos) as running:
        yield running


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    running = Client(server.url, tmp_path_factory.mktemp("home"))
    yield running
    running.close()


@pytest.fixture
def hub(server):
    """The server with an empty log."""
    server.log.clear()
    server.cuts.clear()
    return server


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def refused(answer, kind, *words):
    assert answer.get("error") == kind, answer
    assert "\n" not in answer["message"]
    for word in words:
        assert word in answer["message"]


def test_a_zoo_name_fetches_config_and_weights_and_nothing_else(client, hub, cache):
    found = client("narrow", cache_dir=cache, load=True)
    assert "error" not in found, found
    assert (found["name"], found["repo_id"], found["layout"]) == ("narrow", "owner/narrow", "efficientvit")
    assert found["scaling_factor"] == 0.5
    assert found["revision"] == hub.repos["owner/narrow"].commit
    assert Path(found["weights"]).is_relative_to(cache)
    assert len(hub.downloads()) == len([r for r in hub.downloads() if "/cdn/" in r.path or "config.json" in r.path])
    assert len([request for request in hub.downloads() if "/cdn/" in request.path]) == 1
    assert not [request for request in hub.log if "README" in request.path or ".bin" in request.path]


def test_both_layouts_give_the_same_digest(client, hub, cache):
    answers = [client(name, cache_dir=cache, load=True) for name in ("owner/narrow", "owner/narrow-diffusers")]
    assert [answer["layout"] for answer in answers] == ["efficientvit", "diffusers"]
    assert answers[0]["sha256"] == answers[1]["sha256"] is not None


def test_a_tag_or_commit_resolves_to_the_commit(client, hub, cache):
    commit = hub.repos["owner/narrow"].commit
    for revision in ("v1", commit):
        assert client("owner/narrow", revision=revision, cache_dir=cache)["revision"] == commit


def test_a_second_run_downloads_nothing(client, hub, cache):
    client("narrow", cache_dir=cache)
    hub.log.clear()
    client("narrow", cache_dir=cache)
    assert hub.downloads() == []


def test_offline_uses_the_cache_and_asks_nobody(client, hub, cache):
    online = client("narrow", cache_dir=cache)
    hub.log.clear()
    assert client("narrow", cache_dir=cache, offline=True) == online
    assert hub.log == []
    refused(client("owner/pipeline", cache_dir=cache, offline=True), "HubError", "not in", "offline", "run once with")


def test_offline_finds_whichever_repo_of_the_model_is_cached(client, hub, cache):
    client("owner/narrow-diffusers", cache_dir=cache)
    assert client("narrow", cache_dir=cache, offline=True)["repo_id"] == "owner/narrow-diffusers"


def test_a_pipeline_repo_keeps_it_in_vae_on_line_and_off(client, hub, cache):
    found = client("owner/pipeline", cache_dir=cache)
    assert Path(found["weights"]).parent.name == "vae"
    assert found["revision"] == hub.repos["owner/pipeline"].commit
    assert client("owner/pipeline", cache_dir=cache, offline=True) == found


def test_shards_are_fetched_by_their_index(client, hub, cache):
    sharded = client("owner/sharded", cache_dir=cache, load=True)
    assert sharded["sha256"] == client("owner/narrow", cache_dir=cache, load=True)["sha256"]


def test_when_the_preferred_repo_is_gone_the_next_is_tried(client, hub, cache):
    found = client("moved", cache_dir=cache)
    assert (found["repo_id"], found["name"], found["scaling_factor"]) == ("owner/narrow-diffusers", "moved", 0.5)
    refused(client("lost", cache_dir=cache), "HubError", "gone/lost is not on the hub")


def test_a_scaling_factor_nobody_published_stays_unknown(client, hub, cache):
    assert client("owner/pipeline", cache_dir=cache)["scaling_factor"] is None


def test_a_repo_that_became_another_model_is_refused(client, hub, cache):
    refused(client("other", cache_dir=cache), "CheckpointError", "another architecture than dc-ae-other-1.0")


def test_a_cut_connection_is_resumed_where_it_broke(client, hub, cache):
    hub.cuts.append(100_000)  # the client keeps the 24 whole chunks of 4096 bytes
    found = client("owner/narrow", cache_dir=cache, load=True)
    assert [request.range for request in hub.downloads() if "/cdn/" in request.path] == [None, "bytes=98304-"]
    assert found["sha256"] == client("owner/narrow-diffusers", cache_dir=cache, load=True)["sha256"]


def test_a_connection_cut_again_and_again_is_one_clear_line(client, hub, cache):
    hub.cuts.extend([0] * 20)
    answer = client("owner/narrow", cache_dir=cache)
    refused(answer, "HubError", "owner/narrow: can't download model.safetensors", "run the same command again")
    hub.cuts.clear()
    assert client("owner/narrow", cache_dir=cache, load=True)["sha256"]


def test_gated_without_and_with_the_token(client, hub, cache):
    refused(client("owner/gated", cache_dir=cache), "HubError", "is gated: accept its terms", "token")
    refused(client("owner/gated", cache_dir=cache, token="hf_bad"), "HubError", "is gated")
    assert client("owner/gated", cache_dir=cache, token="hf_good")["repo_id"] == "owner/gated"


def test_what_the_hub_lacks_is_said(client, hub, cache):
    refused(client("owner/absent", cache_dir=cache), "HubError", "owner/absent is not on the hub", "spelling")
    refused(client("narrow", revision="v9", cache_dir=cache), "HubError", "owner/narrow has no revision 'v9'")
    refused(client("owner/broken", cache_dir=cache), "HubError", "HTTP 500", "try again later")
    refused(client("owner/bad name", cache_dir=cache), "UnknownModelError", "owner/bad name")


def test_what_is_no_checkpoint_is_refused(client, hub, cache):
    refused(client("owner/pickled", cache_dir=cache), "CheckpointError", "diffusion_pytorch_model.bin", "can run any")
    refused(client("owner/other", cache_dir=cache), "CheckpointError", "AutoencoderKL", "config.json")
    assert not [request for request in hub.log if ".bin" in request.path]


def test_without_a_network_the_cache_serves_and_the_rest_is_one_clear_line(repos, tmp_path):
    with contextlib.ExitStack() as stack:
        with HubServer(repos) as hub:
            client = Client(hub.url, tmp_path / "home")
            stack.callback(client.close)
            online = [client(name) for name in ("narrow", "owner/pipeline")]
        assert [client(name) for name in ("narrow", "owner/pipeline")] == online
        refused(client("owner/sharded"), "HubError", "owner/sharded: can't download config.json", "check the network")


def test_the_hubs_own_offline_switch_works_like_offline(client, hub, cache, tmp_path):
    online = [client(name, cache_dir=cache) for name in ("narrow", "owner/pipeline")]
    hub.log.clear()
    offline = Client(hub.url, tmp_path / "home", HF_HUB_OFFLINE="1")
    try:
        assert [offline(name, cache_dir=cache) for name in ("narrow", "owner/pipeline")] == online
        refused(offline("owner/sharded", cache_dir=cache), "HubError", "not in", "offline mode", "run once with")
    finally:
        offline.close()
    assert hub.log == []
