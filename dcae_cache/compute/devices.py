"""Which devices there are, what they are called, and what their errors become. Knows nothing of what is computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from ..errors import ModelError, NoMemoryError, UsageError, one_line
from ..records import Bucket
from .memory import is_out_of_memory

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


# Pixels per automatic batch. CUDA: 32 images of 512x512, 5.1 GiB of activations with f32c32 in bf16.
_AUTO_BATCH_PIXELS = {"cuda": 32 * 512 * 512, "mps": 8 * 512 * 512, "cpu": 4 * 512 * 512}


def pick_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:N" or "mps". Raises UsageError where it isn't there."""
    if name == "auto":
        _refuse_old_driver()
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"`device` is {name!r}, which is no device; expected auto, cpu, cuda, cuda:N or mps."
        ) from error
    require_device(device)
    return device


def require_device(device: torch.device) -> None:
    """Raise UsageError for a device that this machine, or this build of torch, does not have."""
    count = _count(device.type)
    if device.type != "cpu" and (device.index or 0) >= count:
        if device.type == "cuda":
            _refuse_old_driver()
        advice = f"use {device.type}:0 to {device.type}:{count - 1}" if count else "use cpu or auto"
        raise UsageError(
            f"`device` is {device}, but torch {torch.__version__} sees {count} devices of that kind here; {advice}."
        )


def _count(kind: str) -> int:
    """How many devices of a kind there are: none of one that torch has no module for, or can't start."""
    try:
        module = torch.get_device_module(kind)
        return int(module.device_count()) if module.is_available() else 0
    except (RuntimeError, AttributeError, ImportError, AssertionError):
        return 0


def _refuse_old_driver() -> None:
    """Raise UsageError where there is a card whose driver is too old for this torch: torch says that it has none, and
    the run would go on the CPU, a hundred times slower."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the same
        if torch.version.cuda is None or torch.cuda.is_available():
            return
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            if "driver" not in str(error) or "too old" not in str(error):
                return
            raise UsageError(
                f"torch {torch.__version__} can't use this machine's NVIDIA card: {first_line(error)}. Update the "
                "driver, install a torch made for an older CUDA, or use `device` cpu."
            ) from error


def describe_device(device: torch.device) -> str:
    """The device with its card's name, where that can be had: "cuda:0 (NVIDIA H100 80GB HBM3)"."""
    if device.type == "cuda":
        with suppress(RuntimeError, AssertionError):
            return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


@contextmanager
def device_errors(device: torch.device, doing: str) -> Iterator[None]:
    """Make errors of the device ours: NoMemoryError where memory ran out, else ModelError. ``doing``: "encoding".

    Torch raises RuntimeError for a device that is lost, an uncorrectable memory error, an illegal access, a missing
    kernel; after most of them this process can't compute anything on it any more. A CPU's other errors pass.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise NoMemoryError(
                f"{describe_device(device)} ran out of memory while {doing}: {first_line(error)}"
            ) from error
        if device.type == "cpu" and not _is_device_error(error):
            raise  # a bug: on a CPU there is no device that could fail
        raise ModelError(
            f"{describe_device(device)} failed while {doing}: {first_line(error)}. What was finished is kept: run the "
            "same command again; leave that `device` out if it fails again."
        ) from error


_DEVICE_SAYS = (
    "cuda",
    "cudnn",
    "cublas",
    "cusolver",
    "nvidia",
    "hip error",
    "mps",
    "xpu",
    "level zero",
    "accelerator",
)


def _is_device_error(error: RuntimeError) -> bool:
    kind = getattr(torch, "AcceleratorError", None)  # from torch 2.8 on
    text = str(error).lower()
    return (kind is not None and isinstance(error, kind)) or any(word in text for word in _DEVICE_SAYS)


def first_line(error: BaseException) -> str:
    """What a device's error says, without the advice on debugging that CUDA's errors go on with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(RuntimeError(lines[0]), 200).rstrip(".") if lines else type(error).__name__


_CUDA_BATCH_BYTES = _AUTO_BATCH_PIXELS["cuda"] * 646  # the same for every autoencoder (see models.activations)


def auto_batch_size(
    bucket: Bucket, device_type: str, bytes_per_pixel: float | None = None, room: int | None = None
) -> int:
    """Images per batch where the user names no number, at least 1: by area, so that a run always makes the same ones.

    ``bytes_per_pixel``: of activations; what takes more than f32c32 in bf16 comes in smaller batches. ``room``: bytes
    that a batch may take at most.
    """
    pixels = bucket.height * bucket.width
    count = _AUTO_BATCH_PIXELS.get(device_type, _AUTO_BATCH_PIXELS["cpu"]) // pixels
    if bytes_per_pixel is not None:
        budget = _CUDA_BATCH_BYTES if room is None else min(_CUDA_BATCH_BYTES, room)
        count = min(count, int(budget // (bytes_per_pixel * pixels)))
    return max(1, count)
