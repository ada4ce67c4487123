"""The table of what activations take is what the networks take."""

from __future__ import annotations

import pytest
import torch

from dcae_cache.models import zoo
from dcae_cache.models.activations import HALF_PRECISION, automatic_batches, bytes_per_pixel, measure
from dcae_cache.models.layouts import Half
from dcae_cache.models.spec import DCAESpec
from dcae_cache.records import Bucket
from helpers.golden import HALVES, load


def spec_of(name: str) -> DCAESpec:
    spec = zoo.get(name).spec
    assert spec is not None
    return spec


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", ["f32c32-tiny", "f32c32-sana-lite"])
def test_the_figures_are_what_fake_tensors_say(name: str, half: Half) -> None:
    assert measure(spec_of(name), half) == pytest.approx(HALF_PRECISION[name][half == "decoder"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", HALF_PRECISION)
def test_all_figures_are_what_fake_tensors_say(name: str, half: Half) -> None:
    figure = HALF_PRECISION[name][half == "decoder"]
    assert measure(spec_of(name), half) == pytest.approx(figure, rel=1e-3)
    assert measure(spec_of(name), half, torch.float32) == pytest.approx(2 * figure, rel=1e-3)


def test_every_known_model_has_its_figure() -> None:
    known = [spec_of(name) for name in HALF_PRECISION]
    for entry in zoo.entries():
        assert spec_of(entry.name).encoder in [spec.encoder for spec in known], entry.name
        assert spec_of(entry.name).decoder in [spec.decoder for spec in known], entry.name


def test_sana_takes_twice_what_f32c32_takes_and_fp32_twice_what_bf16_does() -> None:
    in_bf16 = bytes_per_pixel(spec_of("f32c32-sana"), "encoder", torch.bfloat16)
    assert in_bf16 / bytes_per_pixel(spec_of("f32c32-mix"), "encoder", torch.bfloat16) == pytest.approx(1.99, abs=0.01)
    assert bytes_per_pixel(spec_of("f32c32-sana"), "encoder", torch.float32) == 2 * in_bf16


def test_an_architecture_that_is_not_in_the_table_is_measured() -> None:
    assert 0 < bytes_per_pixel(load("f32-sana").spec, "encoder", torch.bfloat16) < 1286


def test_automatic_batches_of_a_model() -> None:
    bucket, spec = Bucket(512, 512), spec_of("f32c32-sana")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert automatic_batches(cuda, spec, "encoder", torch.bfloat16)(bucket) == 16
    assert automatic_batches(cuda, spec, "encoder", torch.bfloat16, free=4 * 2**30)(bucket) == 10
    assert automatic_batches(cpu, spec, "encoder", torch.float32)(bucket) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_card_takes_what_the_table_says(dtype: torch.dtype) -> None:
    """Within what cuDNN takes for itself: a quarter, and 300 MB that don't grow with the batch."""
    from dcae_cache.compute.exact import exact_math
    from dcae_cache.models.network import DCAENetwork, memory_format

    device = torch.device("cuda")
    spec, layout = spec_of("f32c32-mix"), memory_format(device, dtype)
    network = DCAENetwork(spec, with_decoder=False).requires_grad_(False).eval()
    encoder = network.to(device, dtype).to(memory_format=layout).encoder  # type: ignore[call-overload]
    pixels = torch.zeros(8, 3, 512, 512, device=device, dtype=dtype).to(memory_format=layout)
    with exact_math(device):
        encoder(pixels[:1])
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() - pixels.nbytes
        encoder(pixels)
    taken = torch.cuda.max_memory_allocated() - before
    expected = bytes_per_pixel(spec, "encoder", dtype) * 8 * 512 * 512
    assert 0.9 * expected < taken < 1.25 * expected + 3e8
