"""What the network does between its convolutions, in plain torch: bias and activation, norm and sum, gate, attention.

On a GPU these steps take about as long as memory takes to be read and written, so that there is another set of them
(``fused_steps.py``); these here are what any other is measured against. Knows nothing of blocks, devices or weights.

Formulas: "EfficientViT" (arXiv 2205.14756) for the ReLU linear attention; eps as in the published models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import HEAD_DIM, ActKind

ATTENTION_EPS = 1e-15
NORM_EPS = 1e-5
ACTIVATIONS: dict[ActKind, Callable[..., Tensor]] = {"silu": F.silu, "relu": F.relu}


class RMSNorm2d(nn.Module):
    """Root-mean-square norm over the channels of [N, C, H, W], with weight and bias; statistics in fp32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.movedim(1, -1)
        rows = F.rms_norm(rows, (rows.shape[-1],), self.weight, NORM_EPS)
        return add(rows, self.bias).movedim(-1, 1)


class Steps:
    """The steps in plain torch. Shapes are [N, C, H, W]; results have the dtype of the input unless said otherwise."""

    def activated(self, conv: nn.Conv2d, x: Tensor, kind: ActKind) -> Tensor:
        """A convolution with bias, then an activation."""
        out: Tensor = ACTIVATIONS[kind](conv(x), inplace=not torch.is_grad_enabled())
        return out

    def gated(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A convolution with bias to 2C channels, then its first half times SiLU of its second: C channels."""
        both: Tensor = conv(x)
        value, gate = both.chunk(2, dim=1)
        return value * F.silu(gate, inplace=not torch.is_grad_enabled())

    def normed_sum(self, norm: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
        """``norm(x) + residual``. Without gradients ``x`` may be written over."""
        return add(norm(x), residual)

    def attended(self, qkv: Tensor, dtype: torch.dtype) -> Tensor:
        """ReLU linear attention over all positions, in fp32 whatever comes in: [N, heads * 3 * 32, H, W] to
        [N, heads * 32, H, W] of ``dtype``."""
        out = relu_linear_attention(qkv.flatten(2)).to(dtype)
        return out.view(*out.shape[:2], *qkv.shape[2:])


EAGER = Steps()


def relu_linear_attention(qkv: Tensor) -> Tensor:
    """Attend within each head: qkv [N, heads * 3 * 32, positions] of any dtype -> fp32 [N, heads * 32, positions]."""
    with torch.autocast(qkv.device.type, enabled=False):
        heads = qkv.view(qkv.shape[0], -1, 3, HEAD_DIM, qkv.shape[2])
        query, key, value = F.relu(heads[:, :, 0]).float(), F.relu(heads[:, :, 1]).float(), heads[:, :, 2].float()
        # The keys' sum as one row more gives the normaliser from the same product as the numerator.
        context = torch.cat([value @ key.transpose(-1, -2), key.sum(-1).unsqueeze(-2)], dim=-2)
        summed = context @ query
        return (summed[:, :, :-1] / (summed[:, :, -1:] + ATTENTION_EPS)).flatten(1, 2)


def add(out: Tensor, x: Tensor) -> Tensor:
    """``out + x``, in the memory of ``out`` where no gradient could need it."""
    return out + x if torch.is_grad_enabled() else out.add_(x)
