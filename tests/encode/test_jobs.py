"""Independent jobs: each makes every n-th part of a cache, none knows of the others, the last one writes the index."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dcae_cache.cache.finalize import finalize_cache
from dcae_cache.cache.index import load_index
from dcae_cache.cache.locks import locked, locked_with_others
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.errors import CacheError, CacheLockedError, UsageError
from helpers.command import run as run_cli
from helpers.faults import hashes
from helpers.images import tiny_config


def job(source: Path, out: Path, number: int, count: int, **more: object) -> Summary:
    options = {"device": "cpu", "workers": 1, "part_size": 3, "batch_size": 3, "part_range": (number, count)}
    return encode_dataset(source, out, tiny_config(), RunOptions(**(options | more)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole") / "out"
    encode_dataset(photos, out, tiny_config(), RunOptions(device="cpu", workers=1, part_size=3, batch_size=3))
    return hashes(out)


def test_the_last_job_writes_the_index(photos: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    for number in (2, 0):
        summary = job(photos, tmp_path / "out", number, 3)
        assert not summary.indexed
        assert not (tmp_path / "out" / "index.json").exists()
    summary = job(photos, tmp_path / "out", 1, 3)
    assert (summary.indexed, summary.complete, summary.num_samples) == (True, True, 20)
    assert hashes(tmp_path / "out") == expected


def test_jobs_side_by_side(photos: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    command = [sys.executable, "-m", "dcae_cache.cli.main", "encode", photos, "--out", tmp_path / "out"]
    command += [
        "--model",
        "f32c32-tiny",
        "--resolution",
        "128",
        "--dtype",
        "fp32",
        "--max-aspect",
        "2",
        "--bucket-step",
        "64",
    ]
    command += ["--device", "cpu", "--workers", "1", "--part-size", "3", "--batch-size", "3"]
    jobs = [
        subprocess.Popen([*map(str, command), "--part-range", f"{number}/3"], stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    said = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], said
    assert hashes(tmp_path / "out") == expected
    assert run_cli("info", tmp_path / "out", "--json").stdout.count('"complete": true') == 1


def test_finalize_writes_what_is_there(photos: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    job(photos, tmp_path / "out", 0, 2)
    run_cli("info", tmp_path / "out", expect=1)
    info = json.loads(run_cli("info", tmp_path / "out", "--finalize", "--json").stdout)
    assert (info["complete"], info["totals"]["num_parts"]) == (False, 4)
    job(photos, tmp_path / "out", 1, 2)
    assert finalize_cache(tmp_path / "out")["complete"]
    assert hashes(tmp_path / "out") == expected
    with pytest.raises(CacheError, match=r"is no cache: it has no plan\.parquet"):
        finalize_cache(tmp_path)


def test_a_job_cleans_up_after_itself_alone(photos: Path, tmp_path: Path) -> None:
    parts = tmp_path / "out" / "parts"
    parts.mkdir(parents=True)
    mine, theirs = parts / ".part-000004.safetensors.tmp", parts / ".part-000003.latents.4x4.tmp"
    mine.touch()
    theirs.touch()
    job(photos, tmp_path / "out", 0, 2)
    assert not mine.exists()
    assert theirs.exists()


def test_what_locks_whom_out(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job(photos, out, 0, 2)
    with locked_with_others(out, 0, 2):
        with pytest.raises(CacheLockedError, match="Another run"):
            job(photos, out, 0, 2)  # the same job
        with pytest.raises(CacheLockedError, match="Another run"):
            job(photos, out, 1, 3)  # jobs of another count: parts would be written twice
        with pytest.raises(CacheLockedError, match="Another run"):
            finalize_cache(out)
        assert job(photos, out, 1, 2).complete  # its brother
    with locked(out), pytest.raises(CacheLockedError, match="Another run"):
        job(photos, out, 0, 2)


def test_a_worker_left_over_locks_the_folder(photos: Path, tmp_path: Path) -> None:
    job(photos, tmp_path / "out", 0, 1)
    with (tmp_path / "out" / ".lock-writers").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(CacheLockedError, match="Another run"), locked(tmp_path / "out"):
            pass
    with locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part_range": (3, 3)}, r"counts from 0 to n-1: 0/3 to 2/3, not 3/3"),
        ({"part_range": (0, 2), "prune": True}, "`prune` needs the cache to itself"),
        ({"part_range": (0, 2), "overwrite": True}, "`overwrite` needs the cache to itself"),
    ],
)
def test_what_jobs_cannot_do(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RunOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1", "a/b", "1/", "-1/3", "1/2/3"])
def test_a_range_that_is_none_is_said(text: str, photos: Path, tmp_path: Path) -> None:
    done = run_cli("encode", photos, "--out", tmp_path / "out", f"--part-range={text}", expect=2)
    assert "--part-range is I/N, such as 0/16" in done.stderr


def test_a_source_that_grew_between_two_jobs(photos: Path, tmp_path: Path) -> None:
    """The later job plans what is new; a further round of jobs makes it."""
    from helpers.images import make_folder

    source = make_folder(tmp_path / "photos", 12)
    job(source, tmp_path / "out", 0, 2)
    make_folder(source, 4, first=12)
    job(source, tmp_path / "out", 1, 2)
    assert job(source, tmp_path / "out", 0, 2).complete
    assert load_index(tmp_path / "out")["totals"]["num_samples"] == 16
