"""examples/train_flow.py: it learns, and a run that was killed goes on with exactly the samples that are missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.latents import make_cache

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_flow.py"
SAMPLES = 144  # 18 batches of 8, which 1, 2 and 3 ranks share out evenly
Line = dict[str, object]


def _command(cache: Path, out: Path, ranks: int, steps: int) -> list[str]:
    options = ["--steps", str(steps), "--batch-size", "8", "--save-every", "2", "--width", "64", "--depth", "1"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *launcher, str(EXAMPLE), str(cache), "--out", str(out), *options, "--no-samples"]


def _train(cache: Path, out: Path, ranks: int, steps: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        _command(cache, out, ranks, steps), env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _lines(out: Path) -> list[Line]:
    found = [json.loads(line) for path in sorted(out.glob("log-*.jsonl")) for line in path.read_text().splitlines()]
    return sorted(found, key=lambda line: line["step"])


def _keys(lines: list[Line]) -> Counter[str]:
    return Counter(key for line in lines for key in line["keys"])  # type: ignore[attr-defined]


def test_a_killed_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path / "latents", [{(64, 64): 24, (96, 32): 24}] * 3), tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(_command(cache, out, 1, 10_000), env=environment)
    deadline = time.monotonic() + 120
    while len(_lines(out)) < 7 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    epoch, done = divmod(saved, 18)
    before = [line for line in _lines(out) if line["epoch"] == epoch and int(str(line["step"])) <= saved]
    for path in out.glob("log-*.jsonl"):
        path.unlink()
    _train(cache, out, 1, saved + 18 - done)
    assert _keys(before) + _keys(_lines(out)) == Counter(f"k{number}" for number in range(SAMPLES))


@pytest.mark.slow
def test_other_numbers_of_ranks_go_on(tmp_path: Path) -> None:
    """One epoch, a third of it each on two ranks, three and one."""
    cache, out = make_cache(tmp_path / "latents", [{(64, 64): 24, (96, 32): 24}] * 3), tmp_path / "run"
    keys: Counter[str] = Counter()
    for ranks, steps in ((2, 3), (3, 5), (1, 11)):
        _train(cache, out, ranks, steps)
        found = _keys(_lines(out))
        assert sum(found.values()) == 6 * 8
        keys += found
        for path in out.glob("log-*.jsonl"):
            path.unlink()
    assert keys == Counter(f"k{number}" for number in range(SAMPLES))


@pytest.mark.slow
def test_the_loss_falls_and_a_picture_is_painted(cache: Path, tmp_path: Path) -> None:
    command = _command(cache, tmp_path / "run", 1, 150)
    command.remove("--no-samples")
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    losses = [float(str(line["loss"])) for line in _lines(tmp_path / "run")]
    assert sum(losses[-30:]) < 0.9 * sum(losses[:10]) * 3
    with Image.open(tmp_path / "run" / "samples.png") as picture:
        assert picture.size[0] % 8 == picture.size[1] % 2 == 0
        assert len(picture.getcolors(2**24) or range(100)) > 10, "no plain colour"
