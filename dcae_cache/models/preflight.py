"""Whether a card can do what it is about to be asked, found out with one small image before any work.

A card that can't says so in as many ways as there are libraries, often in words that mean something else later on;
here it is one line with the card's name and what helps. Knows nothing of what the autoencoder is for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..compute.devices import describe_device, device_errors, first_line
from ..compute.exact import exact_math
from ..compute.memory import free_bytes, is_out_of_memory
from ..errors import ModelError, NoMemoryError, UsageError
from .dcae import DCAE

BF16_CAPABILITY = (8, 0)  # compute capability from which on NVIDIA's cards compute in bf16
_ENOUGH = 2**30  # bytes; with so many free a small image can't have run out of memory
_NO_KERNEL = (
    "no kernel image",
    "invalid device function",
    "not compatible with the current pytorch",
    "not compiled for",
)
_OLD_DRIVER = ("driver version is insufficient", "driver on your system is too old", "unsupported ptx version")
_NO_ENGINE = ("unable to find an engine", "not_supported", "arch_mismatch", "not implemented for")


def encode_one(autoencoder: DCAE) -> None:
    """A small black image to its latent, waited for."""
    side = 2 * autoencoder.spatial_compression_ratio
    with exact_math(autoencoder.device):
        autoencoder.encode(torch.full((1, 3, side, side), -1.0, device="cpu")).cpu()


def there_and_back(autoencoder: DCAE) -> None:
    """A small black image to its latent and back, waited for."""
    side = 2 * autoencoder.spatial_compression_ratio
    with exact_math(autoencoder.device):
        autoencoder.decode(autoencoder.encode(torch.full((1, 3, side, side), -1.0, device="cpu"))).cpu()


def open_checked(
    open_one: Callable[[], DCAE],
    device: torch.device,
    dtype: torch.dtype,
    option: str,
    trial: Callable[[DCAE], None] = encode_one,
) -> DCAE:
    """Open an autoencoder, and try it on a small image unless the device is a CPU.

    ``option``: the name of the setting that decides the dtype, or "device" where it can't be chosen. Raises
    NoMemoryError or ModelError, one line, for a card that has no memory for it or can't compute it.
    """
    if device.type == "cpu":
        return open_one()
    require_dtype(device, dtype, option)
    try:
        with device_errors(device, "trying a small image"):
            autoencoder = open_one()
            trial(autoencoder)
            return autoencoder
    except UsageError:
        raise
    except ModelError as error:
        cause = error.__cause__
        if isinstance(cause, RuntimeError):
            raise _explained(cause, device, dtype, option) or error from cause
        raise


def require_dtype(device: torch.device, dtype: torch.dtype, option: str) -> None:
    """Raise ModelError for an NVIDIA card that has no bf16. Torch's own ``is_bf16_supported`` says yes for those, too:
    it emulates single operations, and convolutions fail."""
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.version.hip is not None:
        return
    with device_errors(device, "starting"):
        capability = torch.cuda.get_device_capability(device)
    if capability < BF16_CAPABILITY:
        raise ModelError(
            f"{describe_device(device)} has compute capability {capability[0]}.{capability[1]} and can't compute in "
            f"bf16, which takes {BF16_CAPABILITY[0]}.{BF16_CAPABILITY[1]} or higher: {_advice(option)}."
        )


def _advice(option: str) -> str:
    if option == "device":
        return "use another `device`, for instance cpu"
    return f"use `{option}` fp16 or fp32"


def _explained(error: RuntimeError, device: torch.device, dtype: torch.dtype, option: str) -> ModelError | None:
    """One line for what trying a small image raised; None: nothing better is known than what was said."""
    card, said, text = describe_device(device), first_line(error), str(error).lower()
    if any(words in text for words in _OLD_DRIVER):
        return ModelError(
            f"{card}: the driver is too old for torch {torch.__version__} ({said}): update the driver, or install a "
            "torch made for an older CUDA; meanwhile there is `device` cpu."
        )
    if any(words in text for words in _NO_KERNEL):
        return ModelError(
            f"{card}: torch {torch.__version__} has no kernels for this card ({said}): install a torch that has, or "
            "use another `device`."
        )
    free = free_bytes(device)
    if any(words in text for words in _NO_ENGINE) and (free is None or free >= _ENOUGH):
        name = str(dtype).removeprefix("torch.")
        return ModelError(f"{card} can't compute in {name} ({said}): {_advice(option)}.")
    if is_out_of_memory(error):
        return NoMemoryError(f"{card} has no memory for the model and one small image ({said}): use another `device`.")
    return None
