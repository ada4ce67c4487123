"""What a person meets first: help under headings, completion, ``python -m dcae_cache``, a hub that isn't there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from dcae_cache.cli.main import app
from helpers.warm_command import WarmCommand


def test_the_options_of_encode_stand_under_headings() -> None:
    text = CliRunner().invoke(app, ["encode", "--help"]).output
    places = [text.index(f"\n{heading}:") for heading in ("Options", "What is stored", "What is read", "How it runs")]
    assert places == sorted(places)
    stored, read, how = (text[start:stop] for start, stop in zip(places[1:], [*places[2:], None], strict=True))
    assert "--resolution" in stored
    assert "--caption-column" in read
    assert "--batch-size" in how
    assert "--batch-size" not in stored + read
    assert text.count("dcae-cache encode ") >= 4, "examples"


def test_python_dash_m_and_completion() -> None:
    command = [sys.executable, "-m", "dcae_cache"]
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("dcae-cache ")
    asked = {"_DCAE_CACHE_COMPLETE": "complete_bash", "COMP_WORDS": "dcae-cache enc", "COMP_CWORD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | asked)
    assert done.stdout.split() == ["encode"]


PATIENCE = """
import time
waited = 0.0

def counted(seconds):
    global waited
    waited += seconds
    if waited > 5:
        raise SystemExit("it waits for longer than a person does")

time.sleep = counted
"""


def test_a_hub_that_cannot_be_reached_says_so_at_once(photos: Path, tmp_path: Path) -> None:
    """Its own client would pause for half a minute between its attempts."""
    options = ("--model", "owner/name", "--cache-dir", tmp_path / "hub", "--device", "cpu")
    with WarmCommand(PATIENCE, HF_ENDPOINT="http://127.0.0.1:9") as command:
        done = command.run("encode", photos, "--out", tmp_path / "out", *options, expect=1)
    assert "owner/name: can't download config.json" in done.stderr
