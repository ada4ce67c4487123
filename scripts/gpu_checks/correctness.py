"""The claims about devices, each checked on the device itself. Knows nothing of speed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from dcae_cache import DCAE
from dcae_cache.compute.devices import TORCH_DTYPES
from dcae_cache.images.pixels import load_pixels
from dcae_cache.models.latent_encoder import LatentEncoder
from dcae_cache.verify.diagnosis import agrees, tolerance_for
from helpers.golden import NARROW, load, relative_error, write_diffusers

from .bench import Bench
from .caches import furthest, hashes, make, options, relative_difference, tiny, with_network

GOLDEN_BOUNDS = {"fp32": 1e-5, "bf16": 0.04, "fp16": 0.005}


def environment(bench: Bench) -> None:
    """What runs here."""
    bench.measure("torch", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    if bench.on_cuda:
        facts = torch.cuda.get_device_properties(bench.device)
        memory = facts.total_memory / 2**30
        bench.measure("GPU", f"{facts.name}, sm_{facts.major}{facts.minor}, {memory:.0f} GiB")
        bench.check("bf16 in hardware", (facts.major, facts.minor) >= (8, 0), f"sm_{facts.major}{facts.minor}")


def golden_vectors(bench: Bench) -> None:
    """Seven architectures, three dtypes, both halves, as DCAE runs them: its own weights' layout and memory format."""
    names = NARROW[:2] if bench.quick else NARROW
    for name in names:
        golden = load(name)
        write_diffusers(bench.work / "golden" / name, golden.spec, 0.4)
    for dtype, bound in GOLDEN_BOUNDS.items():
        errors = {}
        for name in names:
            golden = load(name)
            autoencoder = DCAE(str(bench.work / "golden" / name), bench.device, TORCH_DTYPES[dtype])
            errors[f"{name} encoder"] = relative_error(autoencoder.encode(golden.pixels).cpu(), golden.latents)
            decoded = autoencoder.decode(golden.latents).cpu()
            errors[f"{name} decoder"] = relative_error(decoded, golden.reconstruction)
        worst = max(errors, key=lambda name: errors[name])
        detail = f"worst of {len(errors)}: {errors[worst]:.1e} ({worst})"
        bench.check(f"golden vectors in {dtype} within {bound}", errors[worst] < bound, detail)
    _golden_with_kernels(bench, names)


def _golden_with_kernels(bench: Bench, names: Sequence[str]) -> None:
    """The same where the steps between convolutions are kernels."""
    for dtype in ("bf16", "fp16"):
        name, errors = f"golden vectors in {dtype} with kernels", {}
        for golden_name in names:
            golden, folder = load(golden_name), str(bench.work / "golden" / golden_name)
            autoencoder = DCAE(folder, bench.device, TORCH_DTYPES[dtype], kernels="auto")
            if autoencoder.kernels == "eager":
                bench.check(name, False if bench.on_cuda else None, autoencoder.notes or "none here")
                return
            found = autoencoder.encode(golden.pixels).cpu(), autoencoder.decode(golden.latents).cpu()
            errors[f"{golden_name} encoder"] = relative_error(found[0], golden.latents)
            errors[f"{golden_name} decoder"] = relative_error(found[1], golden.reconstruction)
            errors |= {} if autoencoder.kernels == "triton" else {f"{golden_name} decoder has no kernels": 1.0}
        worst = max(errors, key=lambda key: errors[key])
        detail = f"worst of {len(errors)}: {errors[worst]:.1e} ({worst})"
        bench.check(name, errors[worst] < GOLDEN_BOUNDS[dtype], detail)


def cpu_against_device(bench: Bench) -> None:
    """The same photos, latents and mirrored ones, on the CPU and on the device."""
    rule = tiny(bench, bucket="square").bucket_rule(32)
    images = [load_pixels(path.read_bytes(), rule, 10**9).data for path in bench.photos[: 6 if bench.quick else 32]]
    for dtype, torch_dtype in TORCH_DTYPES.items():
        pairs: list[list[Tensor]] = []
        for device in ("cpu", str(bench.device)):
            autoencoder = DCAE("f32c32-tiny", device, torch_dtype, with_decoder=False)
            with LatentEncoder(autoencoder, dtype, 1.0, True) as encoder:  # type: ignore[arg-type]
                batch = encoder.encode(images)
            assert batch.mirrored is not None
            pairs.append([*batch.latents, *batch.mirrored])
        tolerance = tolerance_for(dtype, dtype)
        worst = max(relative_difference(ours, theirs) for ours, theirs in zip(*pairs, strict=True))
        good = all(agrees(ours, theirs, tolerance) for ours, theirs in zip(*pairs, strict=True))
        bench.check(f"CPU and {bench.device.type} agree in {dtype}", good, f"worst difference {worst:.1e}")


class _Small(DCAE):
    """Has no memory for more than two images at once, where no real limit can be set."""

    def encode(self, pixels: Tensor) -> Tensor:
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("made up: no more than two images fit")
        return super().encode(pixels)


def memory_runs_out(bench: Bench) -> None:
    """After halving, every row must be what it is without. On CUDA under a real limit of the allocator."""
    run = options(bench, batch_size=16)
    reference = make(bench, "whole", tiny(bench), run)
    if bench.on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
        make(bench, "peak", tiny(bench), run)
        peak = torch.cuda.max_memory_reserved(bench.device)
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.6 * peak / total, bench.device)
        try:
            made = make(bench, "halved", tiny(bench), run)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
    else:
        made = make(bench, "halved", tiny(bench), run, with_network(_as(_Small)))
    difference, changed, rows = furthest(made.out, reference.out)
    bench.check("a batch that doesn't fit is halved, and that is said", any("memory" in line for line in made.said))
    bench.check("rows after halving are right", difference < 0.05, f"{difference:.1e}; {changed} of {rows} differ")


class _Overflowing(DCAE):
    """The first image of each batch overflows in half precision."""

    def encode(self, pixels: Tensor) -> Tensor:
        latents = super().encode(pixels)
        if self.dtype == torch.float32:
            return latents
        return torch.cat([torch.full_like(latents[:1], float("inf")), latents[1:]])


def half_precision_overflows(bench: Bench) -> None:
    """What overflows is encoded again in fp32, only that, and a person hears of it."""
    run = options(bench, batch_size=4)
    made = make(bench, "overflow", tiny(bench, dtype="fp16"), run, with_network(_as(_Overflowing)))
    reference = make(bench, "exact", tiny(bench, dtype="fp16", compute_dtype="fp32"), run)
    difference, _, _ = furthest(made.out, reference.out)
    bench.check("rows that overflow are fp32's", difference < 0.03, f"{difference:.1e}")
    bench.check("and a line says so", any("fp32" in line for line in made.said), made.said[:1])


def _as(kind: type[DCAE]) -> Callable[[DCAE], DCAE]:
    return lambda plain: kind(plain.checkpoint, plain.device, plain.dtype, with_decoder=False)


def the_same_bytes_again(bench: Bench) -> None:
    """A rerun, and two processes."""
    config, small = tiny(bench), {"part_size": 2 if bench.quick else 8}
    first = hashes(make(bench, "bytes", config, options(bench, **small)).out)
    again = hashes(make(bench, "bytes-again", config, options(bench, **small)).out)
    bench.check("the same bytes in a second run", again == first, _differing(first, again))
    two = hashes(make(bench, "bytes-two", config, options(bench, num_processes=2, **small)).out)
    bench.check("the same bytes with two processes", two == first, _differing(first, two))
    single = make(bench, "bytes-single", config, options(bench, batch_size=1, **small))
    difference, changed, total = furthest(single.out, bench.work / "bytes")
    bench.measure("batch size 1 against automatic, bf16", f"{difference:.1e}; {changed} of {total} rows differ")


def _differing(first: dict[str, str], second: dict[str, str]) -> str:
    return f"{sum(second.get(name) != value for name, value in first.items())} of {len(first)} shards differ"


def whatever_the_caller_has_set(bench: Bench) -> None:
    """fp32 stays fp32 under the caller's autocast, TF32 switches, streams and default devices."""
    rule = tiny(bench, bucket="square").bucket_rule(32)
    images = [load_pixels(bench.photos[0].read_bytes(), rule, 10**9).data] * 2
    with LatentEncoder(DCAE("f32c32-tiny", bench.device, torch.float32, with_decoder=False), "fp32", 1.0, False) as it:
        right = it.encode(images).latents
        for name, context in _surroundings(bench).items():
            with context():
                difference = relative_difference(it.encode(images).latents, right)
            bench.check(f"fp32 under {name}", difference < 1e-6, f"{difference:.1e}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        golden = load("f32")
        autoencoder = DCAE(str(write_diffusers(bench.work / "tf32", golden.spec, 0.4)), bench.device, torch.float32)
        error = relative_error(autoencoder.encode(golden.pixels).cpu(), golden.latents)
    finally:
        torch.set_float32_matmul_precision(before)
    bench.check("fp32 where the caller allows TF32", error < 1e-5, f"{error:.1e}")


def _surroundings(bench: Bench) -> dict[str, Callable[[], AbstractContextManager[object]]]:
    found: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "autocast": lambda: torch.autocast(bench.device.type, torch.bfloat16),
        "enabled gradients": torch.enable_grad,
    }
    if bench.on_cuda:
        found["a side stream"] = lambda: torch.cuda.stream(torch.cuda.Stream(bench.device))
        found["a default device"] = lambda: torch.device("cuda")
    return found


def the_command_line(bench: Bench) -> None:
    """``encode`` with two workers and ``verify``, as a user runs them."""
    out = bench.work / "command"
    side = "128" if bench.quick else "256"
    recipe = ["--model", "f32c32-tiny", "--resolution", side, "--device", str(bench.device.type)]
    done = _dcae_cache(
        "encode", str(bench.work / "photos"), "--out", str(out), *recipe, "--num-processes", "2", "--part-size", "2"
    )
    noise = [line for line in done.stderr.splitlines() if any(word in line for word in _NOISE)]
    bench.check("encode with two workers", done.returncode == 0, done.stderr.strip().splitlines()[-1:])
    bench.check("nothing strange on stderr", not noise, noise[:2])
    checked = _dcae_cache("verify", str(out), "--device", str(bench.device), "--samples", "8" if bench.quick else "64")
    last = (checked.stdout + checked.stderr).strip().splitlines()[-1:]
    bench.check("verify finds nothing wrong", checked.returncode == 0, last)


_NOISE = ("Warning", "WARNING", "Traceback", "NCCL", "[W", "[E")


def _dcae_cache(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dcae_cache.cli.main", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
