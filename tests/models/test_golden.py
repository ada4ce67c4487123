"""The network computes what the reference implementation computes, for every published architecture."""

from __future__ import annotations

import pytest
import torch

from dcae_cache.models.network import DCAENetwork, LinearAttention, memory_format
from helpers.golden import NARROW, golden_tensor, load, native_weights, relative_error

# Half-precision weights and activations, some 60 layers deep: an error bound on max|difference| / max|reference|.
# The rounding step is 2**-9 (bf16) and 2**-12 (fp16); measured: at most 0.021 and 0.0026.
HALF_BOUNDS = {torch.bfloat16: 0.04, torch.float16: 0.005}


def network(spec, half, dtype=torch.float32):
    built = DCAENetwork(spec, with_encoder=half == "encoder", with_decoder=half == "decoder")
    built.load_state_dict(native_weights(spec, half))
    layout = memory_format(torch.device("cpu"), dtype)
    return getattr(built.eval().requires_grad_(False).to(dtype).to(memory_format=layout), half)


@torch.inference_mode()
def errors(name, dtype):
    golden = load(name)
    latents = network(golden.spec, "encoder", dtype)(golden.pixels.to(dtype))
    pixels = network(golden.spec, "decoder", dtype)(golden.latents.to(dtype))
    assert latents.dtype == pixels.dtype == dtype
    assert latents.shape == golden.latents.shape
    assert pixels.shape == golden.reconstruction.shape
    return relative_error(latents, golden.latents), relative_error(pixels, golden.reconstruction)


@pytest.mark.parametrize("name", NARROW)
def test_float32_agrees_with_the_reference(name):
    encode_error, decode_error = errors(name, torch.float32)
    assert encode_error < 1e-5
    assert decode_error < 1e-5


@pytest.mark.parametrize("dtype", HALF_BOUNDS, ids=str)
@pytest.mark.parametrize("name", NARROW)
def test_half_precision_stays_within_its_bound(name, dtype):
    encode_error, decode_error = errors(name, dtype)
    assert encode_error < HALF_BOUNDS[dtype]
    assert decode_error < HALF_BOUNDS[dtype]


@pytest.mark.slow
def test_the_full_f32c32_agrees_with_the_reference():
    encode_error, decode_error = errors("full-f32c32", torch.float32)
    assert encode_error < 1e-5
    assert decode_error < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("name", NARROW)
def test_float32_agrees_on_cuda(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    golden = load(name)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode():
            latents = network(golden.spec, "encoder").to("cuda")(golden.pixels.cuda()).cpu()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert relative_error(latents, golden.latents) < 1e-5


def test_with_and_without_gradients_it_is_the_same_function():
    golden = load("f32-sana")
    encoder = network(golden.spec, "encoder")
    with torch.inference_mode():
        expected = encoder(golden.pixels)
    pixels = golden.pixels.clone().requires_grad_(True)
    latents = encoder(pixels)
    assert relative_error(latents.detach(), expected) < 1e-6
    latents.square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_encoding_leaves_its_input_as_it_was():
    golden = load("f32-sana")
    pixels = golden.pixels.clone()
    with torch.inference_mode():
        network(golden.spec, "encoder")(pixels)
    assert torch.equal(pixels, golden.pixels)


@pytest.mark.parametrize("name", ["f32-1.5", "f64-1.5"])
def test_1_5_decoders_take_a_leading_subset_of_channels(name):
    golden = load(name)
    decoder = network(golden.spec, "decoder")
    padded = golden.latents.clone()
    padded[:, 16:] = 0
    with torch.inference_mode():
        assert relative_error(decoder(golden.latents[:, :16]), decoder(padded)) < 1e-6


def test_attention_in_fp16_does_not_overflow_on_a_large_input():
    attention = LinearAttention(64, multiscale=True).eval().requires_grad_(False)
    attention.load_state_dict({name: golden_tensor(name, t.shape) for name, t in attention.state_dict().items()})
    x = golden_tensor("input", (1, 64, 64, 64)) * 512 * 40  # activations of about 40, summed over 4096 positions
    with torch.inference_mode():
        _, key, value = attention.qkv(x).view(2, 3, 32, -1).unbind(1)
        sums = value @ key.relu().transpose(-1, -2)
        expected = attention(x)
        found = attention.half()(x.half())
    assert sums.abs().max() > torch.finfo(torch.float16).max
    assert torch.isfinite(found).all()
    assert relative_error(found, expected) < 0.01
