"""The Triton kernels compute what plain torch does, and compile for GPUs that are not here. Skipped without Triton."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from dcae_cache.models.dcae import DCAE
from helpers.golden import HALVES, NARROW, load, relative_error, write_diffusers

OLDEST = (3, 7)  # whose interpreter and offline compiler are called as here; the kernels compile with 3.2, too
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: pip install triton", allow_module_level=True)
if tuple(int(part) for part in version("triton").split(".")[:2]) < OLDEST:
    pytest.skip(f"Triton {version('triton')} is older than these tests want", allow_module_level=True)

ROOT = Path(__file__).parents[2]
BOUNDS = {"fp32": 1e-5, "fp16": 0.005}  # those of plain torch, see test_golden.py
STEP_BOUNDS = {"fp32": 1e-6, "fp16": 2e-3}
QUICK = "f32-sana encoder"  # residual blocks, attention at two scales, gated MLPs
OTHERS = sorted({f"{name} {half}" for name in NARROW for half in HALVES} - {QUICK})


@cache
def told(*arguments: str) -> Any:
    """What helpers.kernels prints."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TRITON_INTERPRET": "1"}
    if arguments[0] == "compile":
        del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-m", "helpers.kernels", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_each_step_agrees_with_plain_torch() -> None:
    report = told("steps")
    assert len(report["errors"]) == 14
    assert {key: error for key, error in report["errors"].items() if error > STEP_BOUNDS[key.split()[-1]]} == {}


@pytest.mark.parametrize("fault", ["formats differ", "batches differ", "hides NaN", "without gradients"])
def test_no_step_minds_its_surroundings(fault: str) -> None:
    """The layout in memory, what else is in the batch, numbers that overflowed, and gradients that are asked for."""
    assert told("steps")[fault] == []


@pytest.mark.parametrize(
    "which", [pytest.param([QUICK], id=QUICK), pytest.param(OTHERS, id="others", marks=pytest.mark.slow)]
)
def test_golden_vectors(which: list[str]) -> None:
    errors = told("golden", *which)
    assert len(errors) == 2 * len(which)
    assert {key: error for key, error in errors.items() if error >= BOUNDS[key.split()[-1]]} == {}


@pytest.mark.parametrize(
    "model", ["f32c32-mix", *(pytest.param(name, marks=pytest.mark.slow) for name in ("f32c32-sana", "f128c512-mix"))]
)
def test_every_kernel_of_the_published_encoders_compiles_for_sm_80_and_sm_90(model: str) -> None:
    report = told("compile", model)
    assert report["kernels"] == [
        *("add_chunks", "attention_out", "attention_sums", "bias_activation", "bias_gate", "rms_norm_add")
    ]
    assert report["other sizes"] == [], "kernels that would be compiled in the middle of a run"
    assert report["narrow"] == [], "memory is read 16 bytes at a time"
    assert report["spills"] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NARROW)
def test_golden_vectors_on_cuda(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    golden = load(name)
    autoencoder = DCAE(str(write_diffusers(tmp_path, golden.spec, 0.4)), "cuda", dtype, kernels="auto")
    latents, pixels = autoencoder.encode(golden.pixels).cpu(), autoencoder.decode(golden.latents).cpu()
    assert (autoencoder.kernels, autoencoder.notes) == ("triton", [])
    bound = {torch.bfloat16: 0.04, torch.float16: 0.005}[dtype]
    assert relative_error(latents, golden.latents) < bound
    assert relative_error(pixels, golden.reconstruction) < bound
