"""``dcae-cache export`` and ``import`` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from helpers.command import run
from helpers.images import encode


def test_export(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "of several buckets"
    encode(photos, cache, bucket_step=None)
    refused = run("export", cache, "--to", "npy", "--out", tmp_path / "npy", expect=2)
    assert "Or encode with --bucket square" in refused.stderr
    assert "Choose one: --where 'bucket_height == " in refused.stderr
    tars = ("export", cache, "--to", "webdataset", "--out", tmp_path / "tars")
    done = run(*tars, "--limit", "6", "--shard-size", "4")
    assert "6 samples in 2 shards" in done.stdout
    assert "WebDataset(" in done.stdout
    again = run(
        "export",
        cache,
        "--to",
        "webdataset",
        "--out",
        tmp_path / "tars",
        "--limit",
        "6",
        "--shard-size",
        "4",
        "--json",
    )
    assert json.loads(again.stdout)["shards_reused"] == 2
    other = run(*tars, expect=2)
    assert "--out" in other.stderr
    assert "holds another export" in other.stderr
    wrong = run("export", cache, "--to", "npy", "--out", tmp_path / "npy", "--dtype", "fp16", expect=2)
    assert "npy takes --dtype fp32, not fp16" in wrong.stderr


def test_import(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 32, 4, 4)).astype(np.float32)
    (tmp_path / "npy" / "cat").mkdir(parents=True)
    for number, latents in enumerate(values):
        np.save(tmp_path / "npy" / "cat" / f"{number}.npy", latents)
    given = ("import", tmp_path / "npy", "--from", "npy", "--model", "f32c32-tiny", "--out", tmp_path / "back")
    raw = run(*given, "--scaled", "no", expect=2)
    assert "is --scaled wrong?" in raw.stderr
    assert not (tmp_path / "back").exists()
    back = run(*given, "--scaled", "yes", "--json")
    assert json.loads(back.stdout)["dtype"] == "fp32"
    assert "not known: the latents were imported" in run("info", tmp_path / "back").stdout
    checked = run("verify", tmp_path / "back")
    assert "with no images to compare them with: say where: --source" in checked.stderr
