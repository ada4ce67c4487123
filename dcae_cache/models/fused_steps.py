"""The steps between convolutions as a few Triton kernels, for GPUs. Importing it needs Triton.

A bias is left out of its convolution and added where its activation is; a norm, its bias and the sum with the residual
are one pass. Fewer roundings than in plain torch, so results differ from it by rounding. Knows nothing of devices but
that kernels run on the tensor's own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from .spec import HEAD_DIM, ActKind
from .steps import ATTENTION_EPS, NORM_EPS, RMSNorm2d, Steps

_NORM_NUMBERS = 2048  # of a program: a row, or as many as that holds
_BUILD: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}  # stated: what Triton does by itself changes


class FusedSteps(Steps):
    """The steps by kernels, for inference: with gradients, and for batch norm, in plain torch."""

    def activated(self, conv: nn.Conv2d, x: Tensor, kind: ActKind) -> Tensor:
        """A convolution with bias, then an activation."""
        if torch.is_grad_enabled() or conv.bias is None:
            return super().activated(conv, x, kind)
        out = _rows(_without_bias(conv, x))
        rows, channels = _shape(out)
        grid = (_blocks(rows * channels, kernels.BLOCK),)
        with _on(out):
            kernels.bias_activation[grid](
                out, conv.bias, rows, C=channels, SILU=kind == "silu", BLOCK=kernels.BLOCK, **_BUILD
            )
        return out

    def gated(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A convolution with bias to 2C channels, then its first half times SiLU of its second: C channels."""
        if torch.is_grad_enabled() or conv.bias is None:
            return super().gated(conv, x)
        both = _rows(_without_bias(conv, x))
        out = _new(both, both.shape[1] // 2, both.dtype)
        rows, channels = _shape(out)
        grid = (_blocks(rows * channels, kernels.BLOCK),)
        with _on(out):
            kernels.bias_gate[grid](both, conv.bias, out, rows, C=channels, BLOCK=kernels.BLOCK, **_BUILD)
        return out

    def normed_sum(self, norm: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
        """``norm(x) + residual``; ``x`` may be written over."""
        if torch.is_grad_enabled() or not isinstance(norm, RMSNorm2d):
            return super().normed_sum(norm, x, residual)
        out, residual = _rows(x), _rows(residual)
        rows, channels = _shape(out)
        columns = 1 << (channels - 1).bit_length()
        many = max(1, _NORM_NUMBERS // columns)
        with _on(out):
            kernels.rms_norm_add[(_blocks(rows, many),)](
                *(out, norm.weight, norm.bias, residual, rows),
                C=channels,
                COLUMNS=columns,
                ROWS=many,
                EPS=NORM_EPS,
                **_BUILD,
            )
        return out

    def attended(self, qkv: Tensor, dtype: torch.dtype) -> Tensor:
        """ReLU linear attention over all positions: [N, heads * 3 * 32, H, W] to [N, heads * 32, H, W]. Products of
        half precision are exact, and summed in fp32."""
        if torch.is_grad_enabled():
            return super().attended(qkv, dtype)
        qkv = _rows(qkv)
        count, channels = qkv.shape[:2]
        positions, heads = qkv.shape[2] * qkv.shape[3], channels // (3 * HEAD_DIM)
        chunks = _blocks(positions, kernels.CHUNK)
        sums = torch.empty((count, heads, chunks, kernels.SUMS), dtype=torch.float32, device=qkv.device)
        total = torch.empty((count, heads, kernels.SUMS), dtype=torch.float32, device=qkv.device)
        out = _new(qkv, heads * HEAD_DIM, dtype)
        fixed: dict[str, Any] = {"C": channels, "P": kernels.POSITIONS, **_BUILD}
        with _on(qkv):
            kernels.attention_sums[(heads, chunks, count)](
                qkv, sums, positions, chunks, CHUNK=kernels.CHUNK, num_stages=2, **fixed
            )
            kernels.add_chunks[(count * heads,)](sums, total, chunks, **_BUILD)
            grid = heads, _blocks(positions, kernels.POSITIONS), count
            kernels.attention_out[grid](qkv, total, out, positions, EPS=ATTENTION_EPS, **fixed)
        return out


def _without_bias(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _rows(x: Tensor) -> Tensor:
    """The tensor with the channels of each position side by side in memory; itself, where it is so."""
    return x if x.permute(0, 2, 3, 1).is_contiguous() else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _new(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    count, _, height, width = like.shape
    return torch.empty((count, height, width, channels), dtype=dtype, device=like.device).permute(0, 3, 1, 2)


def _shape(x: Tensor) -> tuple[int, int]:
    count, channels, height, width = x.shape
    return count * height * width, channels


def _blocks(total: int, size: int) -> int:
    return -(-total // size)


def _on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever device its arguments are on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
