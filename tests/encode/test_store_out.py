"""Caches written to an object store: the same files as in a folder, however often a run is killed; moto's S3."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.images import encode
from helpers.s3 import BUCKET, objects, s3_server
from helpers.warm_command import WarmCommand

RECIPE = ("--model", "f32c32-tiny", "--resolution", 128, "--dtype", "fp32", "--max-aspect", 2.0)
RUN = ("--device", "cpu", "--workers", 2, "--part-size", 8, "--batch-size", 3)
# Dies when S3 is asked for the n-th time, n being in a file: before the request goes out, or after the answer came.
PREPARE = """
import os, pathlib, signal, s3fs
moment = pathlib.Path(os.environ["DIE_AT"])
if moment.exists():
    left = [int(moment.read_text())]
    real = s3fs.S3FileSystem._call_s3
    async def call(self, *arguments, **settings):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await real(self, *arguments, **settings)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    s3fs.S3FileSystem._call_s3 = call
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server() as settings:
        folder = tmp_path_factory.mktemp("s3")
        yield settings | {"DIE_AT": str(folder / "die-at"), "XDG_CACHE_HOME": str(folder / "user")}


@pytest.fixture(scope="module")
def command(environment: dict[str, str]) -> Iterator[WarmCommand]:
    with WarmCommand(PREPARE, **environment) as command:
        yield command


def _expected(photos: Path, tmp_path: Path) -> dict[str, bytes]:
    encode(photos, tmp_path / "local")
    paths = [path for path in (tmp_path / "local").rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(tmp_path / "local")): path.read_bytes() for path in paths}


def _kill_and_compare(command: WarmCommand, moments: Path, photos: Path, tmp_path: Path, kills: int) -> None:
    """Kill runs at drawn moments, then let one end: the objects are the files of an undisturbed run."""
    expected = _expected(photos, tmp_path)
    out = f"s3://{BUCKET}/{tmp_path.name}"
    draw = random.Random(kills)
    killed = 0
    while killed < kills:
        moments.write_text(str(draw.randint(1, 60)))
        scratch = tmp_path / f"scratch{draw.randint(0, 1)}"  # now and then a machine that has nothing of it
        command.start("encode", photos, "--out", out, *RECIPE, *RUN, "--scratch", scratch)
        done = command.finish()
        assert done.code in (0, -signal.SIGKILL), done.err
        killed += done.code != 0
        found = objects(tmp_path.name)
        assert set(found) <= {*expected, ".lock.json"}
        for name, data in found.items():
            assert name in (".lock.json", "index.json", "skipped.jsonl") or data == expected[name], name
            if name.endswith(".parquet") and name != "plan.parquet":
                assert name.replace(".parquet", ".safetensors") in found, "a part with a table is whole"
    moments.unlink()
    command.run("encode", photos, "--out", out, *RECIPE, *RUN, "--scratch", tmp_path / "scratch0")
    assert objects(tmp_path.name) == expected


def test_killed_three_times(command: WarmCommand, environment: dict[str, str], photos: Path, tmp_path: Path) -> None:
    _kill_and_compare(command, Path(environment["DIE_AT"]), photos, tmp_path, 3)


@pytest.mark.slow
def test_killed_twenty_times(command: WarmCommand, environment: dict[str, str], photos: Path, tmp_path: Path) -> None:
    _kill_and_compare(command, Path(environment["DIE_AT"]), photos, tmp_path, 20)
