"""What the device can do, and how near to it the product comes. Figures, not checks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dcae_cache import EncodeConfig, encode_dataset
from dcae_cache.images.pixels import load_pixels
from dcae_cache.models import zoo
from dcae_cache.models.layouts import diffusers_config, to_diffusers
from dcae_cache.models.network import DCAENetwork, memory_format
from dcae_cache.models.spec import DCAESpec
from helpers.golden import relative_error

from .bench import Bench
from .caches import options

MODEL = "f32c32-mix"
TFLOP_PER_PIXEL = 2.09 / 512**2
SIZES = ((1, 512, 512), (32, 512, 512), (128, 256, 256), (8, 1024, 1024), (1, 2176, 3840))


def ceilings(bench: Bench) -> None:
    """Matmul, memory and PCIe: what nothing on this machine can exceed."""
    side = 8192 if bench.on_cuda else 512
    factor = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    bench.measure("bf16 matmul", f"{2 * side**3 / bench.time(lambda: factor @ factor) / 1e12:.2f} TFLOP/s")
    block = torch.empty(2**30 if bench.on_cuda else 2**24, device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(block)
    rate = 2 * block.numel() / bench.time(lambda: target.copy_(block)) / 1e9
    bench.measure("copy on the device", f"{rate:.0f} GB/s read and written")
    if bench.on_cuda:
        pinned = torch.empty(25 * 2**20, dtype=torch.uint8, pin_memory=True)
        there = pinned.to(bench.device)
        taken = bench.time(lambda: there.copy_(pinned, non_blocking=True))
        bench.measure("host to device, pinned", f"{pinned.numel() / taken / 1e9:.1f} GB/s")


def encoder_against_diffusers(bench: Bench) -> None:
    """The full-width encoder in bf16, beside diffusers' with the same weights; compiled too where time allows."""
    spec = zoo.get("f32c32-tiny" if bench.quick else MODEL).spec
    assert spec is not None
    ours, theirs = _encoders(spec, bench)
    sizes = ((2, 64, 64),) if bench.quick else SIZES
    with torch.inference_mode():
        for count, height, width in sizes:
            pixels = torch.rand(count, 3, height, width, device=bench.device, dtype=torch.bfloat16) * 2 - 1
            in_format = pixels.to(memory_format=memory_format(bench.device, torch.bfloat16))
            seconds = _rate(bench, f"ours {count}x{height}x{width}", partial(ours, in_format), pixels)
            peer = _rate(bench, f"diffusers {count}x{height}x{width}", partial(theirs, pixels), pixels)
            bench.measure(f"speed over diffusers at {count}x{height}x{width}", f"{peer / seconds:.2f}")
        count, height, width = sizes[min(1, len(sizes) - 1)]
        pixels = torch.rand(count, 3, height, width, device=bench.device, dtype=torch.bfloat16) * 2 - 1
        _variants(bench, ours, theirs, pixels.to(memory_format=memory_format(bench.device, torch.bfloat16)))


def _variants(bench: Bench, ours: nn.Module, theirs: nn.Module, pixels: Tensor) -> None:
    """Switches that may be worth having: each beside the eager network on the same pixels."""
    eager = ours(pixels)
    start = time.perf_counter()
    ours(pixels)
    bench.measure("host time to launch one batch", f"{(time.perf_counter() - start) * 1e3:.1f} ms")
    bench.sync()
    if not bench.on_cuda:
        return
    for switch in ("benchmark", "deterministic"):
        before = getattr(torch.backends.cudnn, switch)
        setattr(torch.backends.cudnn, switch, True)
        try:
            _rate(bench, f"ours, cudnn.{switch}", partial(ours, pixels), pixels)
        finally:
            setattr(torch.backends.cudnn, switch, before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours(pixels)
    _rate(bench, "ours, as a CUDA graph", graph.replay, pixels)
    del graph
    for name, network in (("ours", ours), ("diffusers", theirs)):
        if bench.left() > 150:
            compiled = torch.compile(network)
            start = time.perf_counter()
            result = compiled(pixels)
            bench.sync()
            bench.measure(f"{name}, time to compile", f"{time.perf_counter() - start:.0f} s")
            _rate(bench, f"{name}, compiled", partial(compiled, pixels), pixels)
            if network is ours:
                error = relative_error(result.float(), eager.float())
                bench.check("compiled agrees with eager", error < 0.04, f"{error:.1e}")


def _rate(bench: Bench, name: str, work: Callable[[], object], pixels: Tensor) -> float:
    if bench.on_cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    seconds = bench.time(work)
    tflops = TFLOP_PER_PIXEL * pixels.numel() / 3 / seconds
    peak = f", peak {torch.cuda.max_memory_allocated(bench.device) / 2**30:.1f} GiB" if bench.on_cuda else ""
    figures = f"{seconds * 1e3:.1f} ms, {len(pixels) / seconds:.1f} images/s"
    bench.measure(name, figures if bench.quick else f"{figures}, {tflops:.0f} TFLOP/s{peak}")
    return seconds


def _encoders(spec: DCAESpec, bench: Bench) -> tuple[nn.Module, nn.Module]:
    """Our encoder as DCAE has it, and diffusers' in its own memory format, with the same random weights."""
    torch.manual_seed(0)
    network = DCAENetwork(spec, with_decoder=False).eval().requires_grad_(False)
    theirs: nn.Module = _diffusers_encoder(network, spec).to(bench.device, torch.bfloat16)
    form = memory_format(bench.device, torch.bfloat16)
    network.to(bench.device, torch.bfloat16).to(memory_format=form)  # type: ignore[call-overload]
    assert network.encoder is not None
    return network.encoder, theirs


def _diffusers_encoder(network: DCAENetwork, spec: DCAESpec) -> nn.Module:
    from diffusers import AutoencoderDC

    with torch.device("meta"):
        model = AutoencoderDC.from_config(diffusers_config(spec, None))
    weights = {name: tensor.clone() for name, tensor in to_diffusers(network.state_dict(), spec).items()}
    model.encoder.load_state_dict({name.removeprefix("encoder."): t for name, t in weights.items()}, assign=True)
    encoder: nn.Module = model.encoder.eval().requires_grad_(False)
    return encoder


def decoding_by_threads(bench: Bench) -> None:
    """JPEG bytes to pixels."""
    data = [path.read_bytes() for path in bench.photos]
    cores = len(os.sched_getaffinity(0))
    for resolution in (256, 512):
        decode = partial(_decode, EncodeConfig(resolution=resolution))
        for threads in sorted({1, 4, cores}):
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(decode, data[:threads]))
                start = time.perf_counter()
                list(pool.map(decode, data))
                rate = len(data) / (time.perf_counter() - start)
            bench.measure(f"decoding at {resolution}, {threads} threads", f"{rate:.0f} images/s")


def _decode(config: EncodeConfig, data: bytes) -> object:
    return load_pixels(data, config.bucket_rule(32), 10**9)


def whole_runs(bench: Bench) -> None:
    """Photos to parts with an encoder of full width (random weights), and how much of the time the device worked."""
    folder = bench.work / "many"
    folder.mkdir()
    for number in range(1 if bench.quick else 6):
        for path in bench.photos:
            (folder / f"{number}-{path.name}").symlink_to(path.resolve())
    model = full_model(bench)
    for resolution in (64,) if bench.quick else (512, 256):
        config = EncodeConfig(model=model, resolution=resolution)
        out = bench.work / f"run-{resolution}"
        summary = encode_dataset(folder, out, config, options(bench))
        bench.measure(
            f"whole run at {resolution}",
            f"{summary.images_per_second:.0f} images/s, idle {summary.idle_share:.0%} of the time",
        )


def full_model(bench: Bench) -> str:
    """A checkpoint of full width, with random weights; where it is to be quick, the shipped model."""
    folder = bench.work / MODEL
    if not bench.quick and not folder.exists():
        _write_model(folder)
    return "f32c32-tiny" if bench.quick else str(folder)


def _write_model(folder: Path) -> None:
    spec = zoo.get(MODEL).spec
    assert spec is not None
    folder.mkdir()
    torch.manual_seed(0)
    network = DCAENetwork(spec, with_decoder=False)
    (folder / "config.json").write_text(json.dumps(diffusers_config(spec, 0.4552)))
    save_file(to_diffusers(network.state_dict(), spec), folder / "diffusion_pytorch_model.safetensors")
