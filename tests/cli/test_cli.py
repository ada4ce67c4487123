"""The command line as users meet it: real processes, their output, their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command

from dcae_cache.cli.main import app
from helpers.command import COMMAND, TINY, run
from helpers.images import encoded_image, make_folder
from helpers.tars import make_tar, triples


def test_the_options_are_these_and_no_others() -> None:
    """Adding an option is a decision: make it here too."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {
        name: sorted(opt for param in command.params for opt in param.opts if opt.startswith("--"))
        for name, command in commands.items()
    }
    hub = ["--cache-dir", "--offline", "--token"]
    assert options == {
        "encode": sorted(
            [
                *hub,
                "--allow-damaged",
                "--allow-pipe",
                "--any-suffix",
                "--buckets",
                "--batch-size",
                "--bucket",
                "--bucket-max",
                "--bucket-min",
                "--bucket-step",
                "--caption-column",
                "--caption-encoding",
                "--caption-extension",
                "--caption-lines",
                "--compute-dtype",
                "--crop",
                "--crop-seed",
                "--crops",
                "--delimiter",
                "--device",
                "--kernels",
                "--dry-run",
                "--dtype",
                "--flip",
                "--image-column",
                "--json",
                "--key",
                "--key-split",
                "--label-column",
                "--latent-channels",
                "--limit",
                "--max-aspect",
                "--max-pixels",
                "--max-skip-rate",
                "--max-upscale",
                "--model",
                "--out",
                "--overwrite",
                "--part-size",
                "--profile",
                "--prune",
                "--recheck",
                "--refresh-metadata",
                "--repair",
                "--resolution",
                "--retry-skipped",
                "--scratch",
                "--revision",
                "--scaling-factor",
                "--split",
                "--streaming",
                "--strict",
                "--subfolder",
                "--table",
                "--workers",
                "--max-bytes",
                "--url-timeout",
                "--user-agent",
                "--variant",
                "--num-processes",
                "--part-range",
                "--yes",
            ]
        ),
        "verify": sorted(
            [
                "--max-bytes",
                "--edited",
                "--allow-pipe",
                *hub,
                "--against",
                "--device",
                "--fid",
                "--fid-weights",
                "--integrity-only",
                "--json",
                "--lpips-weights",
                "--min-psnr",
                "--min-ssim",
                "--model",
                "--report",
                "--samples",
                "--seed",
                "--source",
            ]
        ),
        "pull": sorted(["--json", "--out", "--revision", "--token"]),
        "push": sorted(
            [
                *("--anonymous", "--cache-dir", "--device", "--json", "--license", "--model", "--pictures"),
                *("--private", "--revision", "--token"),
            ]
        ),
        "decode": sorted([*hub, "--device", "--flipped", "--format", "--json", "--model", "--out", "--overwrite"]),
        "compare": sorted(
            [
                *hub,
                "--amplify",
                "--device",
                "--dtype",
                "--json",
                "--lpips-weights",
                "--model",
                "--out",
                "--resolution",
            ]
        ),
        "info": ["--finalize", "--json"],
        "models": ["--json"],
        "annotate": ["--as", "--column", "--json", "--key"],
        "filter": ["--json", "--out", "--where"],
        "merge": ["--json", "--out"],
        "split": ["--by", "--json", "--out", "--parts"],
        "export": sorted(
            ["--dtype", "--json", "--limit", "--out", "--shard-size", "--shuffle", "--tensor", "--to", "--where"]
        ),
        "import": sorted(
            [
                *hub,
                *("--any-scale", "--dtype", "--from", "--json", "--model", "--out", "--part-size", "--revision"),
                *("--scaled", "--scaling-factor"),
            ]
        ),
    }


def test_encode_verify_info_in_text(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 5)
    done = run("encode", source, "--out", tmp_path / "out", *TINY)
    assert done.stdout == ""
    assert "Encoded 5 images" in done.stderr
    assert "-bound: cpu stood idle" in done.stderr
    assert "5/5" in done.stderr  # the progress bar
    assert "up to date" in run("encode", source, "--out", tmp_path / "out", *TINY).stderr
    done = run("verify", tmp_path / "out", "--samples", "all", "--device", "cpu")
    assert "decoded 5 of 5 samples" in done.stdout
    assert "PSNR" in done.stdout
    assert "whole" in done.stdout
    assert "f32c32-tiny" in run("info", tmp_path / "out").stdout


def test_json_is_one_object_on_stdout(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 4)
    summary = json.loads(run("encode", source, "--out", tmp_path / "out", *TINY, "--json").stdout)
    assert (summary["encoded"], summary["complete"], summary["skipped"]) == (4, True, {})
    report = json.loads(run("verify", tmp_path / "out", "--device", "cpu", "--json").stdout)
    assert report["ok"] is True
    assert len(report["samples"]) == 4
    info = json.loads(run("info", tmp_path / "out", "--json").stdout)
    assert info["latent"]["scaled"] is True
    models = json.loads(run("models", "--json").stdout)["models"]
    assert {"f32c32-mix", "f64c128-in", "f32c32-tiny"} <= {model["name"] for model in models}


def test_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 6)
    (source / "bad.jpg").write_text("text")
    done = run("encode", source, "--out", tmp_path / "out", *TINY, "--dry-run", "--json", "--batch-size", "2")
    preview = json.loads(done.stdout)
    assert sum(preview["buckets"].values()) == 6
    assert preview["skipped"] == {"not_an_image": 1}
    assert preview["num_bytes"] == sum(
        count * 32 * 4 * int(bucket.split("x")[0]) * int(bucket.split("x")[1]) // 32**2
        for bucket, count in preview["buckets"].items()
    )
    assert preview["batches"] == {bucket: -(-count // 2) for bucket, count in preview["buckets"].items()}
    assert preview["recipe"]["scaling_factor"] > 0
    assert not (tmp_path / "out").exists()
    text = run("encode", source, "--out", tmp_path / "out", *TINY, "--dry-run").stdout
    assert "would be skipped, not_an_image: 1" in text
    summary = json.loads(run("encode", source, "--out", tmp_path / "out", *TINY, "--json").stdout)
    info = json.loads(run("info", tmp_path / "out", "--json").stdout)
    assert info["buckets"] == preview["buckets"]
    assert summary["num_bytes"] > preview["num_bytes"]  # and the shard's header


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("encode", "nowhere", "--out", "out"), 1, "There is no folder nowhere"),
        (("encode", "{empty}", "--out", "out", *TINY), 1, "No images found"),
        (("encode", "{photos}", "--out", "out", "--model", "f32c32-mixx"), 1, "f32c32-mix"),
        (("encode", "{photos}", "--out", "out", *TINY, "--batch-size", "many"), 2, "--batch-size"),
        (("encode", "{photos}", "--out", "out", *TINY, "--device", "gpu"), 2, "--device is 'gpu', which is no device"),
        (("encode", "{photos}", "--out", "out", *TINY, "--bucket", "odd"), 2, "--bucket"),
        (("encode", "{photos}", "--out", "out", *TINY, "--crop", "adm"), 2, "ADM"),
        (("encode", "{photos}"), 2, "--out"),
        (("encode", "{photos}", "--out", "{file}", *TINY), 2, "is a file"),
        (("verify", "nowhere"), 1, "is not a finished cache"),
        (("verify", "{photos}", "--samples", "-3"), 2, "--samples"),
        (("info", "{photos}"), 1, "is not a finished cache"),
    ],
)
def test_bad_input_is_one_clear_line(
    photos: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"photos": str(photos), "empty": str(tmp_path / "empty"), "file": str(tmp_path / "file")}
    done = run(*(argument.format(**places) for argument in arguments), expect=code, cwd=tmp_path)
    assert message in done.stderr
    if code == 1:
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_verify_exits_with_3_and_names_the_mend(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 3)
    run("encode", source, "--out", tmp_path / "out", *TINY)
    shard = tmp_path / "out" / "parts" / "part-000000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 255
    shard.write_bytes(data)
    done = run("verify", tmp_path / "out", "--integrity-only", expect=3)
    assert "problem: part-000000" in done.stderr
    run("verify", tmp_path / "out", "--min-psnr", "99", "--device", "cpu", expect=3)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_by_a_signal_and_run_again(tmp_path: Path, how: signal.Signals) -> None:
    source = make_folder(tmp_path / "photos", 60)
    command = [*COMMAND, "encode", str(source), "--out", str(tmp_path / "out"), *TINY, "--part-size", "4"]
    command += ["--batch-size", "2", "--workers", "1"]
    # A shell that starts these tests in the background would have them, and so the process, ignore SIGINT.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "parts" / "part-000001.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    error = process.communicate(timeout=60)[1]
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "run the same command again" in error
        assert "Traceback" not in error
    summary = json.loads(run(*command[len(COMMAND) :], "--json").stdout)
    assert summary["complete"] is True
    assert summary["num_samples"] == 60
    assert summary["parts_reused"] >= 2
    run("verify", tmp_path / "out", "--integrity-only")
    assert not list((tmp_path / "out").rglob("*.tmp"))
    run("encode", source, "--out", tmp_path / "fresh", *command[command.index(TINY[0]) :])
    for path in sorted((tmp_path / "fresh" / "parts").iterdir()):
        assert path.read_bytes() == (tmp_path / "out" / "parts" / path.name).read_bytes()


def test_help_and_version_name_the_program() -> None:
    assert "encode" in run("--help").stdout
    assert run("--version").stdout.startswith("dcae-cache 0.")
    assert "--dry-run" in run("encode", "--help").stdout


def test_tars_from_the_command_line(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "in" / "00000.tar", triples(0, 3))
    out = tmp_path / "out"
    preview = json.loads(run("encode", tmp_path / "in", "--out", out, *TINY, "--dry-run", "--json").stdout)
    assert (preview["num_samples"], preview["num_parts"]) == (3, 1)
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    done = run("encode", tmp_path / "in", "--out", out, *TINY, expect=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "1 input files are damaged" in line
    assert "--allow-damaged" in line
    run("encode", tmp_path / "in", "--out", out, *TINY, "--allow-damaged")
    assert json.loads(run("info", out, "--json").stdout)["skipped"] == {"damaged": 1}
    assert "--allow-pipe" in run("encode", "pipe:true", "--out", out, *TINY, expect=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("t.csv", "--image-column", "nope"), "There is no column nope in {root}/t.csv; it has: path, text."),
        (("data", "--split", "nope"), "data has no split nope; it has: train."),
        (("data", "--image-column", "nope"), "There is no column nope in {root}/data; it has: image, text."),
        (("none.tar",), "Can't read {root}/none.tar: No such file"),
        (("none-*.tar",), "No tar matches {root}/none-*.tar"),
        (("hf:owner/name",), "hf:owner/name"),
        (("http://127.0.0.1:9/0.tar",), "Can't read http://127.0.0.1:9/0.tar"),
    ],
)
def test_a_source_that_cannot_be_had_is_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "t.csv").write_text("path,text\na.jpg,b\n")
    (tmp_path / "data").mkdir()
    image = {"bytes": encoded_image(96, 128), "path": None}
    pq.write_table(pa.table({"image": [image], "text": ["x"]}), tmp_path / "data" / "0.parquet")
    command = [*COMMAND, "encode", arguments[0], "--out", "out", *TINY, *arguments[1:]]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ | quiet, check=False
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert said.format(root=tmp_path) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "waited", "expected"),
    [
        ("cuda:0", 3.0, "encoder-bound: cuda:0 stood idle 3% of the time between batches"),
        ("cuda:0", 41.0, "decode-bound: cuda:0 stood idle 30% of the time between batches; raise --workers"),
        ("cpu", 41.0, "decode-bound: cpu stood idle 30% of the time between batches; decoding and encoding share"),
    ],
)
def test_the_summary_names_the_side_to_mend(device: str, waited: float, expected: str) -> None:
    from dcae_cache.cli.encode_output import bottleneck
    from dcae_cache.encode.summary import Summary

    counts = dict.fromkeys(
        ("encoded", "copied", "num_samples", "num_bytes", "num_parts", "parts_reused", "vanished", "pruned"), 0
    )
    summary = Summary(
        out="out",
        complete=True,
        skipped={},
        indexed=True,
        num_processes=1,
        device=device,
        seconds=200.0,
        waited_seconds=waited,
        busy_seconds=97.0,
        **counts,
    )
    assert bottleneck(summary).startswith(expected)
