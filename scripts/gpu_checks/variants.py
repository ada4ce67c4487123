"""Ways to do the same work on a device, each checked and measured beside the plain one.

Kernels, recorded work, and how batches come to the device and latents are judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcae_cache import DCAE
from dcae_cache.compute.devices import TORCH_DTYPES
from dcae_cache.compute.transfers import transfers_of
from dcae_cache.images.pixels import load_pixels
from dcae_cache.models.latent_encoder import LatentEncoder
from dcae_cache.records import DtypeName, Kernels
from dcae_cache.verify.diagnosis import agrees, tolerance_for

from .bench import Bench
from .caches import furthest, hashes, make, options, relative_difference, tiny
from .speed import full_model

SIZES = ((32, 512, 512), (128, 256, 256), (8, 512, 512), (1, 512, 512), (1, 256, 256))


def the_kernels(bench: Bench) -> None:
    """They give the latents of plain torch, whatever else is in the batch, and the same bytes each time."""
    images = _photos(bench)
    for dtype in ("bf16",) if bench.quick else ("bf16", "fp16"):
        (eager, _), (fused, name) = (_latents(bench, dtype, kernels, images) for kernels in ("eager", "auto"))
        used = True if name == "triton" else None
        worst = max(relative_difference(ours, theirs) for ours, theirs in zip(fused, eager, strict=True))
        tolerance = tolerance_for(dtype, dtype)
        good = all(agrees(ours, theirs, tolerance) for ours, theirs in zip(fused, eager, strict=True))
        bench.check(f"kernels agree with plain torch in {dtype}", good and used, f"{name}, worst {worst:.1e}")
        again, _ = _latents(bench, dtype, "auto", images)
        bench.check(f"kernels give the same bytes again in {dtype}", torch.equal(again, fused) and used, name)
    run = options(bench, part_size=4)
    plain = make(bench, "torch", tiny(bench), options(bench, part_size=4, kernels="eager"))
    ours = make(bench, "kernels", tiny(bench), run)
    difference, changed, rows = furthest(ours.out, plain.out)
    bench.check("a cache made with kernels is one of the same recipe", difference < 0.1, f"{ours.summary.kernels}")
    bench.measure("kernels against plain torch, bf16", f"{difference:.1e}; {changed} of {rows} rows differ")
    bench.check("the same cache again", hashes(make(bench, "kernels-again", tiny(bench), run).out) == hashes(ours.out))


def recorded_work(bench: Bench) -> None:
    """Replays of small batches give the bytes that the work itself gives, whatever is waited for first."""
    images = _photos(bench)[: 2 if bench.quick else 8]
    said: list[str] = []
    found = []
    for graphs in (False, True):
        with _opened(bench, "auto") as encoder:
            encoder.notify = said.append
            if not graphs:
                encoder.graphs = None
            there = encoder.graphs is not None
            pending = [encoder.launch(images[turn % 2 :] + images[: turn % 2]) for turn in range(6)]
            found.append([one.result().latents for one in reversed(pending)])
    same = all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    bench.check("recorded work gives the same bytes", same and (True if there else None), "" if there else "none here")
    bench.check("nothing is said of recordings", not said, said[:1])


def kernels_against_torch(bench: Bench) -> None:
    """An encoder of full width from pixels in memory to latents in memory: plain torch, kernels, recorded work."""
    for count, height, width in [(1, 64, 64)] if bench.quick else SIZES:
        images = _noise(count, height, width)
        rates = {}
        for name, kernels, graphs in (("torch", "eager", 0), ("kernels", "auto", 0), ("kernels, recorded", "auto", 1)):
            with _opened(bench, kernels, full_model(bench)) as encoder:  # type: ignore[arg-type]
                if not graphs:
                    encoder.graphs = None
                pixels = encoder.prepare(images)
                seconds = bench.time(lambda e=encoder, p=pixels: e.launch(p).result())  # type: ignore[misc]
                start = time.perf_counter()
                pending = encoder.launch(pixels)
                starting = time.perf_counter() - start
                pending.result()
                used = encoder.kernels
            rates[name] = count / seconds
            told = f"{count / seconds:.1f} images/s, started in {starting * 1e3:.1f} ms ({used})"
            bench.measure(f"{name}, {count}x{height}x{width}", told)
        bench.measure(f"kernels over torch at {count}x{height}x{width}", f"{rates['kernels'] / rates['torch']:.2f}")


def the_host_s_side(bench: Bench) -> None:
    """Putting a batch together and onto the device, and judging latents: as it is done, and as it was."""
    images = _noise(2 if bench.quick else 32, 64 if bench.quick else 512, 64 if bench.quick else 512)
    transfers = transfers_of(bench.device)

    def stacked() -> Tensor:
        pixels = torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in images]))
        return (pixels.pin_memory() if bench.on_cuda else pixels).to(bench.device, non_blocking=True)

    with _opened(bench, "eager") as encoder:
        ready = partial(encoder.prepare, images)
        same = torch.equal(transfers.to_device(ready()).cpu(), stacked().cpu())
        bench.check("batches put together in one copy are the same", same)
        _time(bench, "a batch onto the device, stacked and then pinned", stacked)
        _time(bench, "a batch onto the device, one copy into pinned memory", lambda: transfers.to_device(ready()))
        _time(bench, "of that, the loading thread's", ready)
        if bench.on_cuda:
            block, repeats = (2**22,), 20
            fresh = bench.time(lambda: transfers.host_memory(block, torch.uint8), repeats, 0)
            bench.measure("pinned memory that was given back", f"{fresh * 1e6:.0f} microseconds for 4 MiB")
    latents = torch.randn(32, 32, 16, 16, device=bench.device).to(torch.bfloat16)
    _time(bench, "judging latents on the host", lambda: latents.cpu().abs().flatten(1).amax(1).tolist())
    _time(bench, "judging latents on the device", lambda: latents.abs().flatten(1).amax(1).cpu().tolist())


def _time(bench: Bench, name: str, work: Callable[[], object]) -> None:
    bench.measure(name, f"{bench.time(work) * 1e3:.2f} ms")


def _latents(
    bench: Bench, dtype: DtypeName, kernels: Kernels, images: list[NDArray[np.uint8]]
) -> tuple[Tensor, Kernels | str]:
    with _opened(bench, kernels, dtype=dtype) as encoder:
        return encoder.encode(images).latents, encoder.kernels


def _opened(bench: Bench, kernels: Kernels, model: str = "f32c32-tiny", dtype: DtypeName = "bf16") -> LatentEncoder:
    autoencoder = DCAE(model, bench.device, TORCH_DTYPES[dtype], with_decoder=False, kernels=kernels)
    return LatentEncoder(autoencoder, dtype, 1.0, False)


def _photos(bench: Bench) -> list[NDArray[np.uint8]]:
    rule = tiny(bench, bucket="square").bucket_rule(32)
    return [load_pixels(path.read_bytes(), rule, 10**9).data for path in bench.photos[: 2 if bench.quick else 16]]


def _noise(count: int, height: int, width: int) -> list[NDArray[np.uint8]]:
    numbers = np.random.default_rng(0)
    return [numbers.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]
