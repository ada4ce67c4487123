"""Muon for the convolution matrices, AdamW for the rest, and an exponential mean of the weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix [batch, m, n] near 1 by the quintic Newton-Schulz iteration, in bf16."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, scaled to AdamW's size (0.2 rms), with decoupled weight decay.

    A convolution counts as a matrix of outputs by inputs and taps. One that feeds a pixel-shuffle counts as four,
    one for each position: they are as good as separate layers, and it is cheaper.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for param in group["params"]:
                buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                buffer.lerp_(param.grad, 1 - group["momentum"])
                update = as_matrices(param.grad.lerp(buffer, group["momentum"]))
                shapes[tuple(update.shape[1:])].append((param, update))
            for (rows, columns), members in shapes.items():
                scale = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                whole = orthogonalise(torch.cat([update for _, update in members]))
                parts = whole.split([len(update) for _, update in members])
                for (param, _), part in zip(members, parts, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.sub_(from_matrices(part, param), alpha=scale)


def as_matrices(weight: Tensor) -> Tensor:
    """[out, in, k, k] to [1 or 4, rows, in * k * k]; four where a pixel-shuffle follows (out a multiple of 4, 2x in)."""
    rows = weight.flatten(1)
    if len(weight) >= 2 * weight.shape[1] and weight.shape[2] == 3:
        return rows.unflatten(0, (-1, 4)).movedim(1, 0)
    return rows[None]


def from_matrices(update: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``as_matrices``."""
    return (update.movedim(0, 1) if len(update) == 4 else update[0]).reshape(like.shape)


def build_optimizers(network: nn.Module, kind: str, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """AdamW alone, or Muon for everything that is a proper matrix (not depthwise, not a norm, not at the pixels)."""
    matrices, rest = [], []
    for param in network.parameters():
        proper = param.ndim == 4 and min(param.shape[:2]) >= 16
        (matrices if kind == "muon" and proper else rest).append(param)
    fused = all(param.is_floating_point() for param in rest)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=muon_lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


class WeightMean:
    """Exponential mean of the weights: the noise of the last few hundred small batches averages out."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.source = list(network.parameters())
        self.mean = [param.detach().clone() for param in self.source]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights; quickly at first, so that the start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.mean, self.source, 1 - decay)
