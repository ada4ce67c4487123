"""Which steps a network takes between its convolutions: kernels, where they run here and agree, else plain torch.

Kernels are tried once, on one small input and beside plain torch, before any work. Whatever stands in their way (no
Triton, no compiler for it, a card it has no code for, other numbers) is a sentence for a person and no error. Knows
nothing of what is encoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compute.devices import describe_device, first_line
from ..errors import ModelError
from ..records import Kernels, UsedKernels
from .steps import EAGER, Steps

# Of the largest number, how far two ways to round may be apart on a small input, some 60 layers deep. A single one is
# at most 0.021 and 0.0026 from fp32 (tests/models/test_golden.py); a wrong kernel is off by about 1.
_AGREEMENT = {torch.bfloat16: 0.1, torch.float16: 0.02}
_HAS_NORM = hasattr(torch.backends, "fp32_precision")  # RMS norm in one pass on CUDA: both came with torch 2.9


@dataclass(frozen=True, slots=True)
class Choice:
    """The steps to take, what they are called, and what a person should know of it (None: nothing)."""

    steps: Steps
    name: UsedKernels
    note: str | None = None


def choose_steps(
    wanted: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    run: Callable[[Steps], Tensor],
    find: Callable[[], Steps] | None = None,
) -> Choice:
    """``run``: a small input through the network with those steps, which lie on ``device``. ``find`` gives the
    kernels. In fp32 there are none: its convolutions want another layout in memory than they.

    Raises ModelError where a kernel left the device unusable; errors of plain torch pass.
    """
    if device.type != "cuda":
        return Choice(EAGER, "eager")
    slow = None if _HAS_NORM else f"torch {torch.__version__} takes RMS norm apart on CUDA, which costs about a third"
    if wanted == "eager" or dtype not in _AGREEMENT:
        return Choice(EAGER, "eager", f"{slow}: torch 2.9 or newer does not." if slow else None)
    tried = _try(device, dtype, run, find or _find_fused)
    if isinstance(tried, Steps):
        return Choice(tried, "triton")
    more = f"; and {slow}, which 2.9 or newer does not" if slow else ""
    return Choice(EAGER, "eager", f"The GPU kernels are not used ({tried}): plain torch takes over, slower{more}.")


def _try(
    device: torch.device, dtype: torch.dtype, run: Callable[[Steps], Tensor], find: Callable[[], Steps]
) -> Steps | str:
    """The kernels' steps, or why they are not to be used."""
    expected = run(EAGER).float().cpu()
    try:
        steps = find()
        found = run(steps).float().cpu()
    except Exception as error:  # Triton's are of many kinds: of its own, of the C compiler, of the file system
        _require_alive(device, error)
        return f"{type(error).__name__}: {first_line(error)}"
    largest = float(expected.abs().max())
    apart = float((found - expected).abs().max()) / largest if largest else 0.0
    if apart <= _AGREEMENT[dtype]:  # false for NaN
        return steps
    return f"they give other latents than plain torch on {describe_device(device)}, {apart:.2g} of the largest number"


def _find_fused() -> Steps:
    from .fused_steps import FusedSteps

    return FusedSteps()


def _require_alive(device: torch.device, error: Exception) -> None:
    """After an illegal access nothing can be computed in this process any more."""
    try:
        torch.zeros(1, device=device).cpu()
    except RuntimeError as broken:
        raise ModelError(
            f"{describe_device(device)} failed while trying its kernels: {first_line(error)}. Use `kernels` eager."
        ) from broken
