"""Kills: wherever a run dies, running it again gives the files of an undisturbed run."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from helpers.faults import DIED, count_events, encode_in_process, hashes
from helpers.images import make_folder
from helpers.tars import make_tar, triples


def _sources(root: Path) -> dict[str, str]:
    for number in range(2):
        make_tar(root / "tars" / f"{number}.tar", triples(10 * number, 3))
    return {"folder": str(make_folder(root / "photos", 7)), "tars": f"{root}/tars/{{0..1}}.tar"}


@pytest.mark.parametrize("kind", ["folder", pytest.param("tars", marks=pytest.mark.slow)])
def test_death_at_every_write_flush_and_rename(tmp_path: Path, kind: str) -> None:
    source = _sources(tmp_path)[kind]
    total = count_events(source, tmp_path / "whole")
    expected = hashes(tmp_path / "whole")
    assert total > 40
    draw = random.Random(kind)
    for event in sorted(draw.sample(range(total), 16)):  # all of them: python tests/helpers/faults.py --every
        out = tmp_path / f"out{event}"
        first = encode_in_process(source, out, die_at=event)
        first.join()
        assert first.exitcode == DIED, event
        again = encode_in_process(source, out)
        again.join()
        assert again.exitcode == 0, event
        assert hashes(out) == expected, event
        shutil.rmtree(out)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    source = _sources(tmp_path)["folder"]
    whole = encode_in_process(source, tmp_path / "whole")
    whole.join()
    draw = random.Random(1)
    killed = 0
    for _ in range(6):
        process = encode_in_process(source, tmp_path / "out")
        process.join(draw.uniform(0, 1))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    last = encode_in_process(source, tmp_path / "out")
    last.join()
    assert last.exitcode == 0
    assert killed > 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
