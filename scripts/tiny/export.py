"""Write the trained network as diffusers' AutoencoderDC would: config.json, safetensors in fp16, and metrics.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dcae_cache.models.network import DCAENetwork
from dcae_cache.models.spec import DCAESpec

from .photos import whole_photos
from .scores import latent_moments, score, score_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"


def round_to_half(network: DCAENetwork) -> dict[str, Tensor]:
    """The state in fp16; the network itself is rounded too, so that scores are those of the file."""
    half = {name: tensor.detach().cpu().half() for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    return half


def export(
    network: DCAENetwork,
    spec: DCAESpec,
    folder: Path,
    train: list[Path],
    held_out: list[Path],
    kodak: Path | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Round, measure, write; returns the metrics."""
    from dcae_cache.models.layouts import diffusers_config, to_diffusers

    half = round_to_half(network)
    mean, std = latent_moments(network, train)
    metrics = facts | {
        "parameters": sum(tensor.numel() for tensor in half.values()),
        "raw_latent_mean": mean,
        "raw_latent_std": std,
        "scaling_factor": 1 / std,
        "held_out": score(network, whole_photos(held_out, None), with_ssim=True),
        "torch": torch.__version__,
    }
    if kodak is not None:
        metrics["kodak"] = score_folder(network, kodak)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_diffusers(half, spec), folder / WEIGHTS, metadata={"format": "pt"})
    metrics["sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    write_json(folder / "config.json", diffusers_config(spec, 1 / std))
    write_json(folder / "metrics.json", metrics)
    return metrics


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Readable JSON with a final newline."""
    path.write_text(json.dumps(values, indent=2) + "\n")
