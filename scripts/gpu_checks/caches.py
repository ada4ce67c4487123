"""Caches made for the checks, and how far apart two of them are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dcae_cache import DCAE, EncodeConfig, LatentDataset, RunOptions, SourceOptions
from dcae_cache.compute.devices import TORCH_DTYPES
from dcae_cache.encode.part_encoder import OpenEncoder
from dcae_cache.encode.pipeline import Summary, carry_out
from dcae_cache.encode.progress import Listener
from dcae_cache.encode.run import Request, Run, open_encoder
from dcae_cache.models.latent_encoder import LatentEncoder

from .bench import Bench


@dataclass(frozen=True, slots=True)
class Made:
    """A cache that was made for a check."""

    out: Path
    summary: Summary
    said: list[str]


def make(
    bench: Bench, name: str, config: EncodeConfig, options: RunOptions, encoder: OpenEncoder = open_encoder
) -> Made:
    """Encode the bench's photos into a cache of that name."""
    request = Request(
        source=str(bench.work / "photos"),
        out=bench.work / name,
        config=config,
        options=options,
        source_options=SourceOptions(),
    )
    said: list[str] = []
    summary = carry_out(request, Listener(notify=said.append), encoder)
    return Made(bench.work / name, summary, said)


def tiny(bench: Bench, **changes: object) -> EncodeConfig:
    """A recipe with the shipped model."""
    settings: dict[str, object] = {"model": "f32c32-tiny", "resolution": 128 if bench.quick else 256, "dtype": "bf16"}
    return EncodeConfig(**(settings | changes))  # type: ignore[arg-type]


def options(bench: Bench, **changes: object) -> RunOptions:
    """One process on the bench's device."""
    settings: dict[str, object] = {"device": str(bench.device), "num_processes": 1}
    return RunOptions(**(settings | changes))  # type: ignore[arg-type]


def hashes(out: Path) -> dict[str, str]:
    """Shard name -> sha256."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "parts").glob("*.safetensors")}


def furthest(first: Path, second: Path) -> tuple[float, int, int]:
    """The largest relative difference of any row, how many rows differ in any bit, and of how many."""
    one, two = (dict(_latents(cache)) for cache in (first, second))
    if one.keys() != two.keys():
        raise ValueError(f"{first} and {second} hold different samples")
    apart = [relative_difference(one[key], two[key]) for key in one]
    return max(apart), sum(not torch.equal(one[key], two[key]) for key in one), len(one)


def relative_difference(tensor: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what was expected."""
    gap = (tensor.double() - expected.double()).square().mean().sqrt()
    return float(gap / expected.double().square().mean().sqrt())


def with_network(wrap: Callable[[DCAE], DCAE]) -> OpenEncoder:
    """An encoder whose autoencoder is wrapped."""

    def open_wrapped(run: Run, streams: int) -> LatentEncoder:
        dtype = TORCH_DTYPES[run.config.compute_dtype or run.config.dtype]
        autoencoder = wrap(DCAE(run.model.checkpoint, run.model.device, dtype, with_decoder=False))
        return LatentEncoder(autoencoder, run.config.dtype, run.recipe["scaling_factor"], run.config.flip, streams)

    return open_wrapped


def _latents(cache: Path) -> list[tuple[str, Tensor]]:
    dataset = LatentDataset(cache, columns=("key",))
    return [(dataset.describe(number)["key"], dataset.latents(number).clone()) for number in range(len(dataset))]
