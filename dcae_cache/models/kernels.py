"""Triton kernels for what is bound by memory between the encoder's convolutions, each one pass over its tensor.

All take tensors in channels_last memory, so that a row is the channels of one position, compute in fp32 and round
once, when they store. Block sizes are fixed and nothing is tuned or added atomically: an image comes out as the same
bytes whatever else is in its batch, on every card of one kind. Sizes that change from batch to batch are not
specialised on, so that no kernel is compiled in the middle of a run; what is fixed by the network is constexpr.

NaN stays NaN in every step, as in torch: it is how overflow is noticed. Knows nothing of modules.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = (
    1024  # numbers of a program that needs no whole rows: eight for each of 128 threads, 16 bytes in half precision
)
POSITIONS = 64  # of an attention head at once
CHUNK = 1024  # positions that are summed in one go
SUMS = 33 * 32  # of a head of 32 channels: values by keys, and a row with the sums of keys


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0.0, x)


@triton.jit(do_not_specialize=["rows"])
def bias_activation(x, bias, rows, C: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr):
    """x = act(x + bias), in place; x [rows, C]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < rows.to(tl.int64) * C
    v = tl.load(x + at, mask=mask).to(tl.float32) + tl.load(bias + at % C, mask=mask).to(tl.float32)
    v = v * tl.sigmoid(v) if SILU else _relu(v)
    tl.store(x + at, v.to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def bias_gate(x, bias, out, rows, C: tl.constexpr, BLOCK: tl.constexpr):
    """out [rows, C] = value * silu(gate) for [value, gate] = x + bias; x [rows, 2C]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < rows.to(tl.int64) * C
    row, c = at // C, at % C
    value = tl.load(x + row * 2 * C + c, mask=mask).to(tl.float32) + tl.load(bias + c, mask=mask).to(tl.float32)
    gate = tl.load(x + row * 2 * C + C + c, mask=mask).to(tl.float32)
    gate += tl.load(bias + C + c, mask=mask).to(tl.float32)
    tl.store(out + at, (value * gate * tl.sigmoid(gate)).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_add(
    x,
    weight,
    bias,
    residual,
    rows,
    C: tl.constexpr,
    COLUMNS: tl.constexpr,  # C, to the next power of two
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
):
    """x = x / sqrt(mean(x^2) + eps) * weight + bias + residual, in place, the mean over each row; x [rows, C]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (c < C)[None, :]
    at = row[:, None] * C + c[None, :]
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(v * v, axis=1) / C + EPS)
    g = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    r = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    v = v * scale[:, None] * g[None, :] + b[None, :] + r
    tl.store(x + at, v.to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["positions", "chunks"])
def attention_sums(qkv, sums, positions, chunks, C: tl.constexpr, CHUNK: tl.constexpr, P: tl.constexpr):
    """Of one image, head and chunk of positions: the sum of v k^T, and of k; k after ReLU. qkv [N, positions, C]."""
    head, chunk, n = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    d = tl.arange(0, 32)
    context = tl.zeros((32, 32), tl.float32)
    keys = tl.zeros((32,), tl.float32)
    for start in range(0, tl.minimum(CHUNK, positions - chunk * CHUNK), P):
        p = chunk * CHUNK + start + tl.arange(0, P)
        at = qkv + (n * positions + p[:, None]) * C + head * 96 + d[None, :]
        mask = (p < positions)[:, None]
        k = _relu(tl.load(at + 32, mask=mask, other=0.0))
        v = tl.load(at + 64, mask=mask, other=0.0)
        context += tl.dot(tl.trans(v), k.to(v.dtype), out_dtype=tl.float32, input_precision="ieee")
        keys += tl.sum(k.to(tl.float32), axis=0)
    base = sums + ((n * tl.num_programs(0) + head) * chunks + chunk) * (33 * 32)
    tl.store(base + d[:, None] * 32 + d[None, :], context)
    tl.store(base + 32 * 32 + d, keys)


@triton.jit(do_not_specialize=["chunks"])
def add_chunks(sums, total, chunks):
    """Of one image and head: its chunks' sums, added up in order. sums [N * heads, chunks, 33, 32]."""
    one = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, 2048)
    mask = at < 33 * 32
    v = tl.zeros((2048,), tl.float32)
    for chunk in range(chunks):
        v += tl.load(sums + (one * chunks + chunk) * (33 * 32) + at, mask=mask, other=0.0)
    tl.store(total + one * (33 * 32) + at, v, mask=mask)


@triton.jit(do_not_specialize=["positions"])
def attention_out(qkv, total, out, positions, C: tl.constexpr, P: tl.constexpr, EPS: tl.constexpr):
    """Of one image, head and block of positions: (v k^T) q over (sum of k) q; out [N, positions, C / 3]."""
    head, block, n = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    d = tl.arange(0, 32)
    base = total + (n * tl.num_programs(0) + head) * (33 * 32)
    context = tl.load(base + d[:, None] * 32 + d[None, :])
    keys = tl.load(base + 32 * 32 + d)
    p = block * P + tl.arange(0, P)
    mask = (p < positions)[:, None]
    row = n * positions + p[:, None]
    q = _relu(tl.load(qkv + row * C + head * 96 + d[None, :], mask=mask, other=0.0).to(tl.float32))
    over = tl.dot(q, tl.trans(context), out_dtype=tl.float32, input_precision="ieee")
    under = tl.sum(q * keys[None, :], axis=1) + EPS
    tl.store(
        out + row * (C // 3) + head * 32 + d[None, :], (over / under[:, None]).to(out.dtype.element_ty), mask=mask
    )
