"""scripts/train_tiny.py from end to end on a handful of made photos: trains, resumes, exports a model that loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dcae_cache import DCAE
from helpers.images import make_image

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_tiny.py"


def train(photos: Path, out: Path, *options: str) -> dict[str, object]:
    command = [sys.executable, str(SCRIPT), str(photos), "--out", str(out), "--device", "cpu", "--no-compile"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads((out / "metrics.json").read_text()))


@pytest.mark.slow
def test_train_resume_export(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(8):
        make_image(300, 320, number).save(photos / f"{number}.png")
    size = ("--held-out", "2", "--crop", "64", "--late-crop", "64", "--batch", "2", "--warm-up", "2")
    first = train(photos, tmp_path / "run", "--steps", "3", *size)
    assert first["steps"] == 3
    again = train(photos, tmp_path / "run", "--steps", "5", *size, "--resume")
    assert again["steps"] == 5
    exported = DCAE(tmp_path / "run", device="cpu")
    assert (exported.spatial_compression_ratio, exported.latent_channels) == (32, 32)
    assert exported.scaling_factor is not None
    assert exported.scaling_factor > 0
    assert not list((tmp_path / "run").glob("*.part"))
