"""The optimiser and an exponential mean of the weights."""

from __future__ import annotations

import torch
from torch import nn


def build_optimizer(network: nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW without decay: nothing overfits in an hour. 3e-3 diverges from the linear start."""
    return torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


class WeightMean:
    """Exponential mean of the weights: the noise of the last few hundred small batches averages out."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.source = list(network.parameters())
        self.values = [param.detach().clone() for param in self.source]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights; quickly at first, so that the start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self.source, 1 - decay)
