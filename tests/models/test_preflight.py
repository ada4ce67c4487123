"""A card that can't do it says so before any work, with its name and what helps. The cards are stood in for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.errors import ModelError, NoMemoryError
from dcae_cache.models import preflight
from dcae_cache.models.dcae import DCAE
from dcae_cache.models.preflight import encode_one, open_checked, there_and_back
from helpers.images import tiny_config

CUDA0 = torch.device("cuda:0")
CARDS = [("Tesla T4", (7, 5)), ("Tesla V100-SXM2-16GB", (7, 0)), ("NVIDIA GeForce RTX 2070", (7, 5))]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A card at cuda:0, by name, compute capability and free bytes."""
    values: dict[str, Any] = {"name": "NVIDIA H100", "capability": (9, 0), "free": 2**34}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: values["name"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: values["capability"])
    monkeypatch.setattr(preflight, "free_bytes", lambda device: values["free"])
    return values


def opened(error: Exception | None = None) -> DCAE:
    if error is not None:
        raise error
    return DCAE("f32c32-tiny", "cpu")


@pytest.mark.parametrize(("name", "capability"), CARDS)
def test_cards_without_bf16_are_refused_by_name(
    card: dict[str, Any], name: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``torch.cuda.is_bf16_supported()`` says yes there."""
    card.update(name=name, capability=capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    with pytest.raises(
        ModelError, match=rf"^cuda:0 \({name}\) has compute .*bf16.*: use `compute_dtype` fp16 or fp32"
    ):
        open_checked(lambda: opened(AssertionError("nothing is read")), CUDA0, torch.bfloat16, "compute_dtype")
    assert open_checked(opened, CUDA0, torch.float16, "compute_dtype").name == "f32c32-tiny"
    card.update(capability=(8, 0))
    assert open_checked(opened, CUDA0, torch.bfloat16, "compute_dtype").name == "f32c32-tiny"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("CUDA error: no kernel image is available for execution on the device\nand so on", "has no kernels for this"),
        (
            "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
            "the driver is too old for torch",
        ),
        ("GET was unable to find an engine to execute this computation", "can't compute in float16 .*use `dtype` fp"),
        ("CUDA error: uncorrectable ECC error encountered", "failed while trying a small image"),
        ("CUDA error: an illegal memory access was encountered", "failed while trying a small image"),
    ],
)
def test_what_trying_a_small_image_raises_is_explained_in_one_line(
    card: dict[str, Any], said: str, expected: str
) -> None:
    def trial(autoencoder: DCAE) -> None:
        raise RuntimeError(said)

    with pytest.raises(ModelError, match=rf"^cuda:0 \(NVIDIA H100\).*{expected}") as raised:
        open_checked(opened, CUDA0, torch.float16, "dtype", trial)
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, NoMemoryError)


def test_no_engine_on_a_full_card_is_memory(card: dict[str, Any]) -> None:
    card.update(free=2**20)

    def trial(autoencoder: DCAE) -> None:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    with pytest.raises(NoMemoryError, match="no memory for the model and one small image"):
        open_checked(opened, CUDA0, torch.float16, "dtype", trial)


def test_weights_that_do_not_fit_are_memory(card: dict[str, Any]) -> None:
    error = NoMemoryError("cuda:0 ran out of memory while loading")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(NoMemoryError, match=r"cuda:0 \(NVIDIA H100\) has no memory for the model"):
        open_checked(lambda: opened(error), CUDA0, torch.float16, "dtype")


def test_errors_of_the_checkpoint_pass(card: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="no such model"):
        open_checked(lambda: opened(ModelError("no such model")), CUDA0, torch.float16, "dtype")


def test_where_the_dtype_is_the_cache_s_another_device_is_advised(card: dict[str, Any]) -> None:
    card.update(capability=(7, 5))
    with pytest.raises(ModelError, match="use another `device`, for instance cpu"):
        open_checked(opened, CUDA0, torch.bfloat16, "device")


def test_a_cpu_is_not_tried() -> None:
    def trial(autoencoder: DCAE) -> None:
        raise AssertionError("tried")

    open_checked(opened, torch.device("cpu"), torch.bfloat16, "dtype", trial)


def test_trials_run_the_model() -> None:
    encode_one(DCAE("f32c32-tiny", "cpu", with_decoder=False))
    there_and_back(DCAE("f32c32-tiny", "cpu"))


def test_a_run_tries_the_card_before_it_opens_an_image(
    card: dict[str, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.update(name="Tesla T4", capability=(7, 5))
    monkeypatch.setattr("dcae_cache.encode.crew.pick_device", lambda name: CUDA0)
    monkeypatch.setattr(
        "dcae_cache.loading.rows.load_fitted", lambda *_, **options: pytest.fail("an image was opened")
    )
    with pytest.raises(ModelError, match=r"Tesla T4.*`compute_dtype` fp16 or fp32"):
        encode_dataset(photos, tmp_path / "out", tiny_config(dtype="bf16"), RunOptions(device="cpu", workers=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_this_machine_s_card_is_tried(dtype: torch.dtype) -> None:
    def open_one() -> DCAE:
        return DCAE("f32c32-tiny", CUDA0, dtype)

    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < preflight.BF16_CAPABILITY:
        with pytest.raises(ModelError, match="bf16"):
            open_checked(open_one, CUDA0, dtype, "dtype", there_and_back)
    else:
        assert open_checked(open_one, CUDA0, dtype, "dtype", there_and_back).dtype == dtype
