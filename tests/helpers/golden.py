"""The golden vectors of tests/data, the weights that go with them, and checkpoint folders made of both."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcae_cache.models import zoo
from dcae_cache.models.layouts import Half, diffusers_config, from_published, tensor_plans, to_diffusers
from dcae_cache.models.spec import DCAESpec, DecoderSpec, EncoderSpec, stages

DATA = Path(__file__).parent.parent / "data"
NARROW = ("f32", "f32-sana", "f32-lite-sana", "f32-1.5", "f64", "f64-1.5", "f128")
HALVES: tuple[Half, Half] = ("encoder", "decoder")

_BLOCKS = {"ResBlock": "res", "EViTGLU": "evit", "EViTS5GLU": "evit_multiscale"}
_NORMS = {"trms2d": "rms", "bn2d": "batch"}


@dataclass(frozen=True)
class Golden:
    """One golden file: an architecture, and what the reference implementation computes with the golden weights."""

    spec: DCAESpec
    like: str
    pixels: Tensor
    latents: Tensor
    reconstruction: Tensor


@cache
def load(name: str) -> Golden:
    with safe_open(DATA / f"{name}.safetensors", framework="pt") as file:
        metadata = file.metadata()
        tensors = [file.get_tensor(key) for key in ("pixels", "latents", "reconstruction")]
    config = metadata.get("config")
    spec = zoo.get(metadata["like"]).spec if config is None else spec_from_golden(json.loads(config))
    return Golden(spec, metadata["like"], *tensors)


@cache
def published_checkpoints() -> dict[str, Any]:
    """Per published model: config, parameter counts, and name -> shape of every tensor, in efficientvit layout."""
    with gzip.open(DATA / "checkpoints.json.gz") as file:
        return json.load(file)


def spec_from_golden(config: Mapping[str, Any]) -> DCAESpec:
    """The spec of an architecture written in efficientvit's words."""
    encoder, decoder = config["encoder"], config["decoder"]
    return DCAESpec(
        config["latent_channels"],
        EncoderSpec(
            _stages(encoder),
            "strided_conv" if encoder["downsample_block_type"] == "Conv" else "conv_unshuffle",
            encoder["out_shortcut"] == "averaging",
        ),
        DecoderSpec(
            _stages(decoder),
            "interpolate_conv" if decoder["upsample_block_type"] == "InterpolateConv" else "conv_shuffle",
            decoder["in_shortcut"] == "duplicating",
            decoder["out_act"],
        ),
    )


def _stages(half: Mapping[str, Any]):
    def kinds(value: Any, table: Mapping[str, str] | None) -> Any:
        rename = (lambda name: name) if table is None else table.__getitem__
        return rename(value) if isinstance(value, str) else [rename(name) for name in value]

    return stages(
        half["width_list"],
        half["depth_list"],
        kinds(half["block_type"], _BLOCKS),
        kinds(half["norm"], _NORMS),
        kinds(half["act"], None),
    )


def golden_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The golden weights' recipe (tests/data/README.md): a tensor follows from its efficientvit name and shape."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        values = (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    elif name.endswith("running_var"):
        values = 1 + np.float32(0.1) * np.abs(values)
    else:
        values = np.float32(0.1) * values + np.float32(name.endswith("weight"))
    return torch.from_numpy(values)


def efficientvit_weights(spec: DCAESpec, *halves: Half) -> dict[str, Tensor]:
    """The golden weights under their published names."""
    plans = [plan for half in halves or HALVES for plan in tensor_plans(spec, half, "efficientvit").values()]
    return {source.name: golden_tensor(source.name, source.shape) for plan in plans for source in plan.sources}


def native_weights(spec: DCAESpec, *halves: Half) -> dict[str, Tensor]:
    """The golden weights under this package's names, one half or both."""
    published = efficientvit_weights(spec, *halves)
    return {
        name: tensor
        for half in halves or HALVES
        for name, tensor in from_published(published, spec, half, "efficientvit").items()
    }


def write_efficientvit(folder: Path, spec: DCAESpec, model_name: str, *halves: Half) -> Path:
    """A checkpoint folder in efficientvit layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_name": model_name}))
    save_file(efficientvit_weights(spec, *halves), folder / "model.safetensors")
    return folder


def write_diffusers(folder: Path, spec: DCAESpec, scaling_factor: float | None, *halves: Half) -> Path:
    """A checkpoint folder in diffusers layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(diffusers_config(spec, scaling_factor)))
    save_file(to_diffusers(native_weights(spec, *halves), spec), folder / "diffusion_pytorch_model.safetensors")
    return folder


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value expected."""
    return ((found.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
