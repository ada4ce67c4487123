"""What the caller has set for its own work changes nothing of ours, and is as it was afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from dcae_cache.compute.exact import exact_math

CPU = torch.device("cpu")
NEWER = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
B = torch.backends


def readings() -> dict[str, object]:
    """Every switch as it reads; a text where torch refuses to say, because both kinds of switches were mixed."""
    found: dict[str, object] = {}
    ways: dict[str, Callable[[], object]] = {
        "matmul.allow_tf32": lambda: B.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": lambda: B.cudnn.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision,
        "deterministic": lambda: B.cudnn.deterministic,
        "benchmark": lambda: B.cudnn.benchmark,
    }
    for name, read in ways.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "mixed"
    if hasattr(B, "fp32_precision"):
        found |= {"general": B.fp32_precision, "cudnn": B.cudnn.fp32_precision, "matmul": B.cuda.matmul.fp32_precision}
        for owner in (B.cudnn, B.mkldnn):
            for name in ("conv", "rnn", "matmul"):
                if hasattr(owner, name):
                    found[f"{owner.__name__}.{name}"] = getattr(owner, name).fp32_precision
    return found


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Each test begins, and leaves the others, with torch's defaults."""
    defaults()
    yield
    defaults()


def defaults() -> None:
    if hasattr(B, "fp32_precision"):
        for owner in (B, B.cudnn, B.cuda.matmul, B.mkldnn.matmul, B.mkldnn.conv, B.mkldnn.rnn):
            owner.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    B.cudnn.allow_tf32 = True
    B.cudnn.deterministic = B.cudnn.benchmark = False


def setting(owner: object, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


SETTINGS: dict[str, list[Callable[[], None]]] = {
    "nothing": [],
    "allow_tf32": [setting(B.cuda.matmul, "allow_tf32", True)],
    "high": [lambda: torch.set_float32_matmul_precision("high")],
    "medium": [lambda: torch.set_float32_matmul_precision("medium")],
    "no cudnn tf32": [setting(B.cudnn, "allow_tf32", False)],
    "cudnn benchmark": [setting(B.cudnn, "benchmark", True)],
    "cudnn deterministic": [setting(B.cudnn, "deterministic", True)],
}
if hasattr(B, "fp32_precision"):
    SETTINGS |= {
        "all tf32": [setting(B, "fp32_precision", "tf32")],
        "all ieee": [setting(B, "fp32_precision", "ieee")],
        "matmul tf32": [setting(B.cuda.matmul, "fp32_precision", "tf32")],
        "cudnn tf32": [setting(B.cudnn, "fp32_precision", "tf32")],
        "conv tf32": [setting(B.cudnn.conv, "fp32_precision", "tf32")],
        "conv ieee": [setting(B.cudnn.conv, "fp32_precision", "ieee")],
        "mkldnn bf16": [setting(B.mkldnn.matmul, "fp32_precision", "bf16")],
        "mixed": [
            setting(B.cuda.matmul, "allow_tf32", True),
            setting(B.cuda.matmul, "fp32_precision", "ieee"),
            setting(B, "fp32_precision", "tf32"),
        ],
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_float32_is_float32_within_and_the_switches_are_back_afterwards(name: str) -> None:
    for change in SETTINGS[name]:
        change()
    before = readings()
    with exact_math(CPU):
        within = readings()
        with exact_math(CPU):  # one within the other
            assert readings() == within
        assert readings() == within
    assert readings() == before
    assert not {"tf32", "bf16"} & {value for name, value in within.items() if name != "cudnn"}  # not an operation's
    assert within["matmul.allow_tf32"] in (False, "mixed")
    assert (within["deterministic"], within["benchmark"]) == (True, False)
    if "general" not in within:
        assert within["cudnn.allow_tf32"] is False


@NEWER
@pytest.mark.parametrize("name", ["nothing", "high", "all tf32", "cudnn tf32"])
def test_a_switch_that_followed_the_general_one_follows_it_again(name: str) -> None:
    """What the caller sets later has the effect that it would have had without us."""

    def later() -> dict[str, object]:
        B.fp32_precision = "ieee"
        return readings()

    for change in SETTINGS[name]:
        change()
    expected = later()
    defaults()
    for change in SETTINGS[name]:
        change()
    with exact_math(CPU):
        pass
    assert later() == expected


def test_the_environment_s_tf32_is_off_too() -> None:
    code = (
        "import torch; from dcae_cache.compute.exact import exact_math\n"
        "read = lambda: torch.backends.cuda.matmul.allow_tf32\n"
        "before = read()\n"
        "with exact_math(torch.device('cpu')): within = read()\n"
        "print(before, within, read())"
    )
    environ = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == ["True", "False", "True"]


def test_threads_that_overlap_restore_the_switches_once_all_have_left() -> None:
    torch.set_float32_matmul_precision("high")
    before = readings()
    inside, may_leave, left = threading.Event(), threading.Event(), []

    def other() -> None:
        with exact_math(CPU):
            inside.set()
            may_leave.wait(30)
            left.append(torch.get_float32_matmul_precision())

    thread = threading.Thread(target=other)
    with exact_math(CPU):
        thread.start()
        assert inside.wait(30)
    assert torch.get_float32_matmul_precision() == "highest", "the other thread still computes"
    may_leave.set()
    thread.join()
    assert left == ["highest"]
    assert readings() == before


def test_an_error_within_restores_them_too() -> None:
    torch.set_float32_matmul_precision("medium")
    before = readings()
    with pytest.raises(ZeroDivisionError), exact_math(CPU):
        _ = 1 / 0
    assert readings() == before


def test_the_thread_s_own_modes_are_neutral_within() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), torch.device("meta"):
        with exact_math(CPU):
            made = torch.ones(2, 2)
            assert (made @ made).dtype == torch.float32
            assert made.device == CPU
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
        assert torch.ones(1).device.type == "meta"
    with exact_math(CPU):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SETTINGS)
def test_products_and_convolutions_are_exact_on_cuda(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 1024, generator=generator) for _ in range(2))
    image, kernel = torch.randn(2, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    for change in SETTINGS[name]:
        change()
    with exact_math(torch.device("cuda")), torch.autocast("cuda", enabled=False):
        product = (a.cuda() @ b.cuda().T).cpu()
        convolved = torch.nn.functional.conv2d(image.cuda(), kernel.cuda()).cpu()
    right = (a.double() @ b.double().T, torch.nn.functional.conv2d(image.double(), kernel.double()))
    for ours, theirs in zip((product, convolved), right, strict=True):
        assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < 1e-5  # TF32: about 1e-3
