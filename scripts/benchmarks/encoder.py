"""Our f32c32 encoder, full width, against diffusers' AutoencoderDC and against the device's own matmul rate.

Both networks hold the same random weights and take turns on the same pixels; what counts is the ratio of one turn to
the next, since other work on the machine slows all alike. The matmul takes its turn too.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dcae_cache.models import zoo
from dcae_cache.models.layouts import diffusers_config, to_diffusers
from dcae_cache.models.network import DCAENetwork, memory_format
from dcae_cache.models.spec import DCAESpec

from .report import judge, not_measured

MODEL = "f32c32-mix"
TFLOP_PER_PIXEL = 2.09 / 512**2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SIZES = {"cpu": "256", "cuda": "512,1024,2176x3840"}  # 4K is 2160 high: the next multiple of 32
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
SPEED_TARGET = 1.0  # times diffusers
CUDA_BATCH_PIXELS = 2048**2

Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: medians over the turns; ratios are medians of the ratios within a turn."""

    dtype: str
    shape: str
    seconds: float
    tflops: float
    of_matmul: float
    over_diffusers: float
    difference: float


def main(args: list[str]) -> None:
    """Measure every dtype at every size and print a table."""
    options = _parse(args)
    device = torch.device(options.device)
    spec = zoo.get(MODEL).spec
    assert spec is not None, "a published model"
    torch.manual_seed(0)
    ours = DCAENetwork(spec, with_decoder=False).eval().requires_grad_(False)
    lines = []
    with torch.inference_mode():
        for dtype in options.dtypes:
            encoders = _encoders(ours, spec, device, DTYPES[dtype], options)
            for height, width in _sizes(options.sizes or SIZES[device.type]):
                lines.append(_measure(encoders, _pixels(height, width, device, options), dtype, options.repeats))
    _show(lines, options)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench encoder", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", help="such as 256,512,2176x3840 (height x width)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, help="1 on the CPU; on CUDA as many as make 4 megapixels")
    parser.add_argument("--memory-format", choices=FORMATS, help="of our encoder; what DCAE uses unless given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-diffusers", action="store_true", help="leave the peer out")
    return parser.parse_args(args)


def _sizes(text: str) -> list[tuple[int, int]]:
    sides = [[int(side) for side in size.split("x")] for size in text.split(",")]
    return [(size[0], size[-1]) for size in sides]


def _pixels(height: int, width: int, device: torch.device, options: argparse.Namespace) -> Tensor:
    batch = options.batch_size or (1 if device.type == "cpu" else max(1, CUDA_BATCH_PIXELS // (height * width)))
    return torch.rand(batch, 3, height, width, device=device) * 2 - 1


def _encoders(
    network: DCAENetwork, spec: DCAESpec, device: torch.device, dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The networks to compare, each taking fp32 pixels in its own dtype and memory format."""
    form = FORMATS[options.memory_format] if options.memory_format else memory_format(device, dtype)
    ours = DCAENetwork(spec, with_decoder=False).eval().requires_grad_(False)
    ours.load_state_dict(network.state_dict())
    ours.to(device, dtype).to(memory_format=form)  # type: ignore[call-overload]
    assert ours.encoder is not None, "built with it"
    encoders: dict[str, Callable[[Tensor], Tensor]] = {"ours": _prepared(ours.encoder, dtype, form)}
    if not options.no_diffusers:
        theirs = _diffusers_encoder(network, spec).to(device, dtype)
        encoders["diffusers"] = _prepared(theirs, dtype, torch.contiguous_format)
    return encoders


def _prepared(encoder: nn.Module, dtype: torch.dtype, form: torch.memory_format) -> Callable[[Tensor], Tensor]:
    return lambda pixels: encoder(pixels.to(dtype=dtype, memory_format=form))


def _diffusers_encoder(network: DCAENetwork, spec: DCAESpec) -> nn.Module:
    """diffusers' encoder with the same weights; its decoder is never given any memory."""
    from diffusers import AutoencoderDC

    with torch.device("meta"):
        model = AutoencoderDC.from_config(diffusers_config(spec, None))
    weights = {name: tensor.clone() for name, tensor in to_diffusers(network.state_dict(), spec).items()}
    model.encoder.load_state_dict({name.removeprefix("encoder."): t for name, t in weights.items()}, assign=True)
    encoder: nn.Module = model.encoder.eval().requires_grad_(False)
    return encoder


def _measure(encoders: dict[str, Callable[[Tensor], Tensor]], pixels: Tensor, dtype: str, repeats: int) -> Line:
    side = MATMUL_SIDE[pixels.device.type]
    factor = torch.randn(side, side, device=pixels.device, dtype=DTYPES[dtype])
    runs: dict[str, Run] = {name: partial(encoder, pixels) for name, encoder in encoders.items()}
    runs["matmul"] = lambda: factor @ factor
    results = {name: run().float() for name, run in runs.items()}  # also the warm-up
    turns = [{name: _seconds(run, pixels.device) for name, run in runs.items()} for _ in range(repeats)]
    tflop = TFLOP_PER_PIXEL * pixels.numel() / 3
    rates = [(tflop / turn["ours"], 2 * side**3 / 1e12 / turn["matmul"]) for turn in turns]
    peer, difference = float("nan"), float("nan")
    if "diffusers" in results:
        peer = statistics.median(turn["diffusers"] / turn["ours"] for turn in turns)
        gap = (results["ours"] - results["diffusers"]).abs().max() / results["diffusers"].abs().max()
        difference = gap.item()
    return Line(
        dtype,
        "x".join(map(str, pixels.shape)),
        statistics.median(turn["ours"] for turn in turns),
        statistics.median(ours for ours, _ in rates),
        statistics.median(ours / matmul for ours, matmul in rates),
        peer,
        difference,
    )


def _seconds(run: Run, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _show(lines: list[Line], options: argparse.Namespace) -> None:
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    peer = "none" if options.no_diffusers else _version("diffusers")
    print(
        f"{MODEL} encoder on {name}; torch {torch.__version__}, diffusers {peer}, Python {platform.python_version()}; "
        f"memory format {options.memory_format or 'as DCAE'}; medians of {options.repeats} turns\n"
    )
    print("| dtype | pixels | seconds | TFLOP/s | of matmul | speed over diffusers | largest relative difference |")
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        print(
            f"| {line.dtype} | {line.shape} | {line.seconds:.3f} | {line.tflops:.3f} | {line.of_matmul:.2f} "
            f"| {line.over_diffusers:.2f} | {line.difference:.1e} |"
        )
    print()
    for line in lines:
        if not options.no_diffusers:
            judge(f"times diffusers, {line.dtype} {line.shape}", line.over_diffusers, ">=", SPEED_TARGET)
    if options.device == "cpu" and not torch.cuda.is_available():
        not_measured("the encoder on CUDA, and all that scripts/gpu measures", "there is no GPU here")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
