"""What goes wrong on real machines: memory, disks, network file systems, broken weights, impatient people."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dcae_cache.cache.index import load_index
from dcae_cache.config import EncodeConfig, RunOptions
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.errors import CacheError, ModelError, RecipeMismatchError, TooManySkippedError
from dcae_cache.loading import rows as loading
from dcae_cache.models import latent_encoder as encoder
from dcae_cache.models.dcae import DCAE
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.sources.folder import FolderSource
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.command import TINY
from helpers.images import encode, encoded_image, make_folder, tiny_config

Usage = namedtuple("Usage", "total used free")
COMMAND = (sys.executable, "-W", "error", "-m", "dcae_cache.cli.main")


def run(source: Path, out: Path, config: EncodeConfig | None = None, **options: Any) -> Summary:
    settings = {"device": "cpu", "workers": 2, "part_size": 8, "batch_size": 4} | options
    notify = settings.pop("notify", lambda text: None)
    return encode_dataset(source, out, config or tiny_config(), RunOptions(**settings), notify=notify)


def latents(cache: Path) -> dict[str, torch.Tensor]:
    return {sample["key"]: sample["latents"] for sample in LatentDataset(cache)}


def out_of_memory_above(limit: int, patch: pytest.MonkeyPatch) -> list[int]:
    """An encoder that runs out of memory above so many images at a time; the list collects what it was given."""
    real, given = DCAE.encode, []

    def encode_some(self: DCAE, pixels: torch.Tensor) -> torch.Tensor:
        given.append(len(pixels))
        if len(pixels) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, pixels)

    patch.setattr(DCAE, "encode", encode_some)
    return given


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, said = out_of_memory_above(1, monkeypatch), []
    summary = run(photos, tmp_path / "out", notify=said.append)
    assert summary.num_samples == 20
    assert "ran out of memory: images of" in said[0]
    assert sum(count > 1 for count in given) == len(said), "what was learned is kept"
    expected = latents(cache)
    for key, latent in latents(tmp_path / "out").items():
        assert torch.allclose(latent, expected[key], atol=1e-5)


def test_no_memory_for_a_single_image_is_said(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(ModelError, match=r"no memory to encode one image of .* lower `resolution`"):
        run(photos, tmp_path / "out")


def test_absurd_latents_are_skipped_not_stored(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "MAX_MAGNITUDE", 0.0)
    with pytest.raises(TooManySkippedError, match="All 20 samples were skipped, 20 of them as out_of_range"):
        run(photos, tmp_path / "out")
    index = load_index(tmp_path / "out")
    assert (index["totals"]["num_samples"], index["skipped"]) == (0, {"out_of_range": 20})


def test_a_disk_that_is_too_small_is_refused_before_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 0, 1000))
    with pytest.raises(CacheError, match=r"would grow by about 0\.00 GB, and its disk has 0\.00 GB left\. Nothing"):
        run(photos, tmp_path / "out")
    assert not list((tmp_path / "out" / "parts").iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_stops_with_one_line_and_is_resumable(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real, left = os.fsync, [7]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(CacheError, match="No space left" if code == errno.ENOSPC else "Can't write") as failure:
            run(photos, tmp_path / "out")
    assert "\n" not in str(failure.value)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run(photos, tmp_path / "out", batch_size=3).num_samples == 20
    shards = sorted(path.name for path in (cache / "parts").iterdir())
    for name in shards:
        assert (tmp_path / "out" / "parts" / name).exists()


def test_a_folder_that_vanishes_during_the_run_stops_with_one_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone as a disk is that was unmounted: after the first part."""
    real, left = os.fsync, [5]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            (tmp_path / "out").rename(tmp_path / "elsewhere")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CacheError, match=r"Can't write .*: No such file or directory") as failure:
        run(photos, tmp_path / "out")
    assert "\n" not in str(failure.value)
    monkeypatch.undo()
    (tmp_path / "elsewhere").rename(tmp_path / "out")
    assert run(photos, tmp_path / "out").num_samples == 20
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A file system that fails to read each file as often as it is told, with EIO."""
    real, failures = FolderSource._load, {}

    def load(self: FolderSource, entry: Any) -> Any:
        if failures.get(entry.key, 0) > 0:
            failures[entry.key] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(self, entry)

    monkeypatch.setattr(FolderSource, "_load", load)
    monkeypatch.setattr(loading, "RETRY_PAUSES", (0.0, 0.0, 0.0))
    return failures


def test_a_read_that_fails_for_a_moment_is_tried_again(tmp_path: Path, flaky: dict[str, int]) -> None:
    source = make_folder(tmp_path / "photos", 4)
    flaky |= {"class0/img000": 2, "class1/img001": 99}
    summary = run(source, tmp_path / "out")
    assert (summary.num_samples, summary.skipped) == (3, {"unreadable": 1})
    assert flaky["class0/img000"] == 0
    flaky.clear()
    assert run(source, tmp_path / "out").encoded == 0, "skipped is done, unless asked otherwise"
    again = run(source, tmp_path / "out", retry_skipped=True)
    assert (again.encoded, again.copied, again.num_samples, again.skipped) == (1, 3, 4, {})
    assert run(source, tmp_path / "out", retry_skipped=True).device is None


def test_overwrite_deletes_a_cache_of_another_recipe_only(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    (out / "notes.txt").write_text("mine")
    assert run(photos, out, overwrite=True).encoded == 0, "the same recipe: nothing to overwrite"
    other = tiny_config(resolution=256)
    with pytest.raises(RecipeMismatchError, match=r"resolution: 128 -> 256.*`overwrite`"):
        run(photos, out, other)
    assert load_index(out)["recipe"]["resolution"] == 128
    assert run(photos, out, other, overwrite=True).encoded == 20
    assert verify_cache(out, VerifyOptions(integrity_only=True)).ok
    assert (out / "notes.txt").read_text() == "mine"


def test_overwrite_asks_or_needs_yes(photos: Path, tmp_path: Path) -> None:
    encode(photos, tmp_path / "out")
    command = [*COMMAND, "encode", str(photos), "--out", str(tmp_path / "out"), *TINY, "--flip", "--overwrite"]
    refused = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    done = subprocess.run([*command, "--yes", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["encoded"] == 20


def test_the_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    """The first one waits for what is under way; here that is a pipe nobody writes to."""
    code = (
        "import signal, time, dcae_cache.cli.main as m\n"
        "def stuck():\n"
        "    try:\n        print('ready', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        print('stopping', flush=True); time.sleep(60)\n"
        "m.app = lambda **_: stuck()\n"
        "m.main()\n"
    )
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, "Stopped at once" in error) == (130, True)
    assert time.monotonic() - started < 20


def test_an_unreadable_image_does_not_hide_behind_a_retry(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 2)
    (source / "bad.jpg").write_bytes(encoded_image(96, 128)[:200])
    run(source, tmp_path / "out")
    again = run(source, tmp_path / "out", retry_skipped=True)
    assert (again.encoded, again.copied, again.skipped) == (0, 2, {"truncated": 1})
