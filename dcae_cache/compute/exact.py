"""Arithmetic that is what it says, whatever the program around it has set: no TF32, no autocast, no surprises.

``exact_math`` holds torch to that while work is given to a device, and puts everything back as it was. Knows nothing
of what is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_AUTOCAST_TYPES = ("cpu", "cuda", "mps", "xpu", "hpu")
_EXACT = "ieee"


@contextmanager
def exact_math(device: torch.device) -> Iterator[None]:
    """Within it float32 is float32, and what the caller has set for its own work has no say.

    For the whole process: TF32 and bf16 in float32 products and convolutions are off, however they were turned on
    (``allow_tf32``, ``set_float32_matmul_precision``, ``fp32_precision``, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE), fp16
    products are summed in fp32, and cuDNN neither measures its algorithms nor takes one that gives other bytes the
    next time. For the calling thread: no autocast, no gradients, no inference mode, new tensors on the CPU.

    May be entered by several threads at once and within itself: the last one to leave restores the process's settings.
    """
    with _PROCESS.held(), ExitStack() as stack:
        for kind in {*_AUTOCAST_TYPES, device.type}:
            if kind != "meta" and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        yield


class _Held:
    """Settings of the whole process, changed by the first that wants them so and restored by the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._stack = ExitStack()

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if self._holders == 0:
                with ExitStack() as stack:
                    _settle(stack)
                    self._stack = stack.pop_all()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._stack.close()


_PROCESS = _Held()


def _settle(stack: ExitStack) -> None:
    """Change the process's settings; ``stack`` restores them when it is closed."""
    _set(stack, torch.backends.cudnn, "deterministic", True)
    _set(stack, torch.backends.cudnn, "benchmark", False)
    if hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"):  # from torch 2.7 on
        _set(stack, torch.backends.cuda.matmul, "allow_fp16_accumulation", False)
    if hasattr(torch.backends, "fp32_precision"):  # from torch 2.9 on
        _settle_precisions(stack)
    else:
        _settle_matmul(stack)
        _set(stack, torch.backends.cudnn, "allow_tf32", False)


def _set(stack: ExitStack, owner: Any, name: str, value: object) -> None:
    before = getattr(owner, name)
    if before != value:
        setattr(owner, name, value)
        stack.callback(setattr, owner, name, before)


def _settle_matmul(stack: ExitStack) -> None:
    """By the older switch, which the environment sets, too. It can't be read where both kinds were mixed."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        return
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_float32_matmul_precision, before)


def _settle_precisions(stack: ExitStack) -> None:
    """By the newer switches: one for everything, and one for each library's operation that may overrule it.

    One that follows the general switch must follow it again afterwards: so that one is changed first, and only those
    that disagree with it then are changed themselves.
    """
    leaves = _leaves()
    seen = [leaf.fp32_precision for leaf in leaves]
    stack.callback(_restore, leaves, seen)  # the last to be called: what the older switch can't put back
    _settle_matmul(stack)
    _set(stack, torch.backends, "fp32_precision", _EXACT)
    for leaf in leaves:
        if leaf.fp32_precision not in (_EXACT, "none"):
            stack.callback(_undo(leaf, leaf.fp32_precision))
            leaf.fp32_precision = _EXACT


def _leaves() -> list[Any]:
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    return [
        torch.backends.cuda.matmul,
        *(getattr(cudnn, name) for name in ("conv", "rnn")),
        *(getattr(mkldnn, name) for name in ("matmul", "conv", "rnn")),
    ]


def _undo(leaf: Any, before: str) -> Callable[[], None]:
    """Puts a switch back while the general one is still exact: to follow its library's if that says the same."""

    def undo() -> None:
        leaf.fp32_precision = "none"
        if leaf.fp32_precision != before:
            leaf.fp32_precision = before

    return undo


def _restore(leaves: list[Any], seen: list[str]) -> None:
    for leaf, before in zip(leaves, seen, strict=True):
        if leaf.fp32_precision != before:
            leaf.fp32_precision = before
