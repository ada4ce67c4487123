"""The dry run's time: what it is made of, and that measuring never spoils a dry run. No test hangs on its pace."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dcae_cache.config import RunOptions
from dcae_cache.encode import estimate as measuring
from dcae_cache.encode.estimate import Estimate, estimate
from dcae_cache.encode.preview import preview_dataset
from dcae_cache.encode.run_model import RunModel, find_model
from dcae_cache.errors import ModelError
from dcae_cache.records import Bucket
from dcae_cache.text import human_seconds
from helpers.command import TINY, run
from helpers.images import encoded_image, make_folder, tiny_config

CPU = torch.device("cpu")
FACTOR = 1.0
BUCKETS = {Bucket(128, 128): 30, Bucket(64, 256): 10}


def measured(
    monkeypatch: pytest.MonkeyPatch, options: RunOptions, device: str = "cpu", decode: float = 0.5, encode: float = 2.0
) -> Estimate:
    """An estimate as if these seconds had been measured: of one image, and of a million pixels."""
    monkeypatch.setattr(measuring, "_decode_seconds", lambda *_: (1, decode))
    monkeypatch.setattr(measuring, "_encode_seconds", lambda *_: (1, encode))
    monkeypatch.setattr(measuring, "default_workers", lambda: 4)
    spec = SimpleNamespace(spatial_compression_ratio=32)
    model = SimpleNamespace(checkpoint=SimpleNamespace(spec=spec), device=torch.device(device))
    return estimate(model, tiny_config(), options, FACTOR, BUCKETS, [b"one"])  # type: ignore[arg-type]


def test_a_cpu_does_one_after_the_other_with_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = 30 * 128 * 128 + 10 * 64 * 256
    found = measured(monkeypatch, RunOptions(device="cpu"))
    assert found.seconds == pytest.approx(40 * 0.5 / 4 + 2.0 * pixels / 1e6)
    assert measured(monkeypatch, RunOptions(device="cpu", workers=1)).seconds == pytest.approx(
        40 * 0.5 + 2.0 * pixels / 1e6
    )


def test_another_device_encodes_while_cores_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = 30 * 128 * 128 + 10 * 64 * 256
    options = RunOptions(device="mps", num_processes=2)
    assert measured(monkeypatch, options, "meta", decode=0.5).seconds == pytest.approx(40 * 0.5 / 4)
    assert measured(monkeypatch, options, "meta", 0.001, 20.0).seconds == pytest.approx(20.0 * pixels / 1e6 / 2)


def test_what_is_measured_is_there(tmp_path: Path) -> None:
    started = time.perf_counter()
    config, options = tiny_config(), RunOptions(device="cpu")
    images = [encoded_image(200, 200, seed) for seed in range(3)]
    found = estimate(find_model(config, options, CPU), config, options, FACTOR, BUCKETS, [*images, b"no image"])
    elapsed = time.perf_counter() - started
    assert found.decode_seconds is not None
    assert found.encode_seconds is not None
    assert 0 < found.decode_seconds < elapsed
    assert 0 < found.encode_seconds * 128 * 128 / 1e6 < elapsed, "of one image of the commonest bucket"
    assert "measured: 3 images decoded" in found.how, "the fourth is none"
    assert "of 128x128 encoded on" in found.how


@pytest.mark.parametrize("error", [ModelError("no memory"), RuntimeError("driver"), MemoryError("full")])
def test_measuring_that_fails_is_said_and_spoils_nothing(
    error: Exception, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: RunModel) -> None:
        raise error

    monkeypatch.setattr(RunModel, "load", fail)
    preview = preview_dataset(str(photos), tiny_config(), RunOptions(device="cpu"))
    assert sum(preview.buckets.values()) == 20
    assert preview.estimate["seconds"] is None
    assert preview.estimate["how"] == f"not estimated: {error}"


def test_the_dry_run_says_it(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", 3)
    out = tmp_path / "out"
    found = json.loads(run("encode", source, "--out", out, *TINY, "--dry-run", "--json").stdout)["estimate"]
    assert set(found) == {"seconds", "decode_seconds", "encode_seconds", "how"}
    assert found["seconds"] > 0
    text = run("encode", source, "--out", out, *TINY, "--dry-run").stdout
    assert " s (measured: 3 images decoded, " in text
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_text("no image")
    text = run("encode", tmp_path / "broken", "--out", out, *TINY, "--dry-run").stdout
    assert "time not estimated: no image could be decoded" in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "1 s"), (45.2, "45 s"), (90, "2 min"), (3700, "1 h 2 min"), (200_000, "2 d 8 h")],
)
def test_seconds_as_people_say_them(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
