"""Kernels are taken where they run and agree, and whatever stands in their way is one line. Cards are stood in for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.encode.run_model import find_model
from dcae_cache.errors import ModelError, UsageError
from dcae_cache.models import dcae as dcae_module
from dcae_cache.models import kernel_choice
from dcae_cache.models.dcae import DCAE
from dcae_cache.models.kernel_choice import Choice, choose_steps
from dcae_cache.models.steps import EAGER, Steps
from helpers.images import tiny_config

CUDA0 = torch.device("cuda:0")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Kernels(Steps):
    """Plain torch, but for what ``change`` does to each sum."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda out: out) -> None:
        self.change = change

    def normed_sum(self, norm: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
        return self.change(super().normed_sum(norm, x, residual))


def fail(error: Exception) -> Callable[[Tensor], Tensor]:
    def change(out: Tensor) -> Tensor:
        raise error

    return change


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[Steps]:
    """From now on a DCAE on the CPU chooses as on cuda:0, whose kernels are the first of the list; torch is new."""
    found: list[Steps] = [Kernels()]

    def choose(wanted: Any, device: object, dtype: torch.dtype, run: Callable[[Steps], Tensor]) -> Choice:
        return choose_steps(wanted, CUDA0, dtype, run, lambda: found[0])

    monkeypatch.setattr(dcae_module, "choose_steps", choose)
    monkeypatch.setattr(kernel_choice, "_require_alive", lambda device, error: None)
    monkeypatch.setattr(kernel_choice, "describe_device", lambda device: "cuda:0 (NVIDIA H100)")
    monkeypatch.setattr(kernel_choice, "_HAS_NORM", True)
    return found


def tiny(dtype: torch.dtype, **settings: Any) -> DCAE:
    return DCAE("f32c32-tiny", "cpu", dtype, **settings)


def steps_of(autoencoder: DCAE) -> set[Steps]:
    encoder = autoencoder._half("encoder").network.encoder
    assert encoder is not None
    return {module.steps for module in encoder.modules() if hasattr(module, "steps")}


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_kernels_that_agree_are_taken(card: list[Steps], dtype: torch.dtype) -> None:
    autoencoder = tiny(dtype, kernels="auto")
    assert (autoencoder.kernels, autoencoder.notes) == ("triton", [])
    assert steps_of(autoencoder) == {card[0]}


@pytest.mark.parametrize(("dtype", "wanted"), [(FP32, "auto"), (BF16, "eager")])
def test_plain_torch_in_fp32_and_where_it_is_asked_for(card: list[Steps], dtype: torch.dtype, wanted: Any) -> None:
    card[0] = Kernels(fail(AssertionError("nothing is tried")))
    autoencoder = tiny(dtype, kernels=wanted)
    assert (autoencoder.kernels, autoencoder.notes, steps_of(autoencoder)) == ("eager", [], {EAGER})


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable\nand more"),
        PermissionError(13, "Permission denied: '/root/.triton'"),
        FileNotFoundError("ptxas"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_kernels_that_cannot_be_built_are_one_line(card: list[Steps], error: Exception) -> None:
    card[0] = Kernels(fail(error))
    autoencoder = tiny(FP16, kernels="auto")
    assert (autoencoder.kernels, steps_of(autoencoder)) == ("eager", {EAGER})
    (note,) = autoencoder.notes
    assert note.startswith(f"The GPU kernels are not used ({type(error).__name__}: ")
    assert note.endswith("): plain torch takes over, slower.")
    assert "\n" not in note


@pytest.mark.parametrize(
    "change",
    [lambda out: out * 1.2, lambda out: out.roll(1, 3), lambda out: out * float("nan"), torch.zeros_like],
    ids=["scaled", "shifted", "NaN", "zero"],
)
def test_kernels_that_give_other_latents_are_not_taken(card: list[Steps], change: Any) -> None:
    card[0] = Kernels(change)
    autoencoder = tiny(FP16, kernels="auto")
    assert (autoencoder.kernels, steps_of(autoencoder)) == ("eager", {EAGER})
    assert "they give other latents than plain torch on cuda:0 (NVIDIA H100)" in autoencoder.notes[0]


def test_a_decoder_is_tried_when_it_is_read(card: list[Steps]) -> None:
    autoencoder = tiny(FP16, kernels="auto")
    card[0] = Kernels(fail(RuntimeError("no")))
    assert autoencoder.kernels == "triton"
    autoencoder.decode(torch.zeros(1, 32, 1, 1))
    assert autoencoder.kernels == "eager"
    assert len(autoencoder.notes) == 1


def test_a_card_that_a_kernel_broke_is_no_fallback() -> None:
    def run(steps: Steps) -> Tensor:
        if steps is not EAGER:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return torch.ones(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros", lambda *_, **__: run(Kernels()))
        patch.setattr(kernel_choice, "describe_device", str)
        with pytest.raises(ModelError, match=r"^cuda:0 failed while trying its kernels: .*Use `kernels` eager"):
            choose_steps("auto", CUDA0, FP16, run, Kernels)


def test_an_older_torch_is_told_of(card: list[Steps], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.9 RMS norm is taken apart on CUDA: the kernels have their own."""
    monkeypatch.setattr(kernel_choice, "_HAS_NORM", False)
    assert tiny(FP16, kernels="auto").notes == []
    for dtype, wanted in ((FP32, "auto"), (FP16, "eager")):
        (note,) = tiny(dtype, kernels=wanted).notes
        assert note.startswith(f"torch {torch.__version__} takes RMS norm apart on CUDA")
    card[0] = Kernels(fail(RuntimeError("no")))
    (note,) = tiny(FP16, kernels="auto").notes
    assert "slower; and torch" in note


def test_on_a_cpu_nothing_is_tried_and_nothing_said() -> None:
    autoencoder = tiny(BF16, kernels="auto")
    assert (autoencoder.kernels, autoencoder.notes, steps_of(autoencoder)) == ("eager", [], {EAGER})


def test_without_triton_the_line_says_so(card: list[Steps], monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("triton") is not None:
        monkeypatch.setitem(__import__("sys").modules, "triton", None)
    monkeypatch.delitem(__import__("sys").modules, "dcae_cache.models.fused_steps", raising=False)
    monkeypatch.delitem(__import__("sys").modules, "dcae_cache.models.kernels", raising=False)
    choice = choose_steps("auto", CUDA0, FP16, lambda steps: torch.ones(1))
    assert choice.name == "eager"
    assert choice.note is not None
    assert "triton" in choice.note


def test_a_run_says_once_why_and_its_summary_what(
    card: list[Steps], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(name: str, **options: Any) -> tuple[str | None, list[str]]:
        said: list[str] = []
        settings = RunOptions(device="cpu", workers=1, limit=4, part_size=2, **options)
        config = tiny_config(dtype="fp16")
        return encode_dataset(photos, tmp_path / name, config, settings, notify=said.append).kernels, said

    assert encode("triton") == ("triton", [])
    assert encode("triton") == (None, []), "nothing was left to encode"
    assert encode("triton", kernels="eager") == (None, []), "the recipe is the same"
    assert encode("eager", kernels="eager") == ("eager", [])
    card[0] = Kernels(fail(RuntimeError("no compiler")))
    used, said = encode("fallback")
    assert used == "eager"
    assert len([line for line in said if "The GPU kernels are not used" in line]) == 1


@pytest.mark.parametrize("make", [lambda: RunOptions(kernels="fast"), lambda: tiny(FP32, kernels="fast")])  # type: ignore[arg-type]
def test_other_words_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match="`kernels` is one of auto, eager, not 'fast'"):
        make()


def test_a_model_of_a_run_takes_what_the_options_say() -> None:
    for wanted in ("auto", "eager"):
        model = find_model(tiny_config(), RunOptions(device="cpu", kernels=wanted), torch.device("cpu"))  # type: ignore[arg-type]
        assert model.kernels == []
        assert model.load()._wanted_kernels == wanted
        assert model.kernels == ["eager"]
