"""Which devices are there, and what becomes of their errors."""

from __future__ import annotations

import pytest
import torch

from dcae_cache.compute import devices
from dcae_cache.compute.devices import auto_batch_size, device_errors, pick_device
from dcae_cache.errors import ModelError, NoMemoryError, UsageError
from dcae_cache.records import Bucket

NONE_HERE = [
    *("meta", "hpu", "ipu", "xla", "vulkan", "lazy", "maia", "privateuseone", "cuda:9", "0", "", "cuda:-1", "gpu"),
    *(name for name in ("mps", "xpu", "mtia", "cuda") if not torch.get_device_module(name).is_available()),
]
ECC = (
    "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be reported at some other API call"
    ", so the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)


@pytest.mark.parametrize("name", NONE_HERE)
def test_a_device_that_is_not_there_is_a_usage_error_of_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=r"^`device` is ") as raised:
        pick_device(name)
    assert "\n" not in str(raised.value)


def test_devices_that_are_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_driver_that_is_too_old_is_said_and_no_cpu_taken_instead(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch says that there is no CUDA then, and a run would go on the CPU without a word."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(UsageError, match=r"NVIDIA card: The NVIDIA driver on your system is too old .*`device` cpu"):
        pick_device(name)


def test_a_machine_without_a_driver_goes_on_with_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    assert pick_device("auto").type in ("cpu", "mps")


def test_a_device_s_error_is_ours_and_one_line() -> None:
    with pytest.raises(ModelError) as raised, device_errors(torch.device("cpu"), "encoding"):
        raise RuntimeError(ECC)
    assert str(raised.value).startswith("cpu failed while encoding: CUDA error: uncorrectable ECC error encountered. ")
    assert "run the same command again" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "LAUNCH_BLOCKING" not in str(raised.value)


def test_its_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    said = r"^cuda:3 \(NVIDIA H100 80GB HBM3\) failed while encoding: an illegal"
    with pytest.raises(ModelError, match=said), device_errors(torch.device("cuda:3"), "encoding"):
        raise RuntimeError("an illegal memory access was encountered")


def test_a_card_that_is_lost_can_still_be_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(device: torch.device) -> str:
        raise RuntimeError("CUDA error: device lost")

    monkeypatch.setattr(torch.cuda, "get_device_name", lost)
    assert devices.describe_device(torch.device("cuda:1")) == "cuda:1"


def test_memory_that_ran_out_is_told_apart() -> None:
    said = "cpu ran out of memory while loading f32c32-mix"
    with pytest.raises(NoMemoryError, match=said), device_errors(torch.device("cpu"), "loading f32c32-mix"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_bugs_on_a_cpu_and_errors_of_ours_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), device_errors(torch.device("cpu"), "encoding"):
        raise RuntimeError("shapes cannot be multiplied")
    with pytest.raises(UsageError, match="mine"), device_errors(torch.device("cuda"), "encoding"):
        raise UsageError("mine")


def test_automatic_batches_on_a_cpu_are_by_area_alone() -> None:
    sizes = [auto_batch_size(Bucket(side, side), "cpu") for side in (256, 512, 1024, 2048)]
    assert sizes == [16, 4, 1, 1]


def test_automatic_batches_follow_what_the_model_takes_and_what_is_free() -> None:
    bucket = Bucket(512, 512)
    assert auto_batch_size(bucket, "cuda") == 32
    assert auto_batch_size(bucket, "cuda", 646.0) == 32  # f32c32 in bf16
    assert auto_batch_size(bucket, "cuda", 1286.0) == 16  # Sana's
    assert auto_batch_size(bucket, "cuda", 2 * 1286.0) == 8  # in fp32
    assert auto_batch_size(bucket, "cuda", 38.0) == 32, "a small model gets no larger ones"
    assert auto_batch_size(bucket, "cuda", 646.0, room=2**31) == 12
    assert auto_batch_size(bucket, "cuda", 646.0, room=0) == 1
