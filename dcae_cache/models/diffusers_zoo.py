"""The autoencoders to compare a DC-AE with: their table, and finding their files in a folder or on the hub.

Knows names, repos and config.json; reads no tensors and does not know diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .diffusers_config import CLASS_NAME as DC_AE_CLASS
from .folder import Files, fetch_weights, first_config


@dataclass(frozen=True, slots=True)
class OtherEntry:
    """One known autoencoder that is no DC-AE. f and c are checked against the model once it is loaded."""

    name: str
    repo_id: str
    class_name: str
    spatial_compression_ratio: int
    latent_channels: int
    notes: str


_TABLE = (
    OtherEntry("taesd", "madebyollin/taesd", "AutoencoderTiny", 8, 4, "Stable Diffusion 1 and 2's, distilled"),
    OtherEntry("taesdxl", "madebyollin/taesdxl", "AutoencoderTiny", 8, 4, "SDXL's, distilled"),
    OtherEntry("sdxl-vae-fp16-fix", "madebyollin/sdxl-vae-fp16-fix", "AutoencoderKL", 8, 4, "SDXL's, safe in fp16"),
    OtherEntry("kl-f8-d16", "ostris/vae-kl-f8-d16", "AutoencoderKL", 8, 16, "16 channels, as in newer models"),
    OtherEntry(
        "asymmetric-x-1-5",
        "cross-attention/asymmetric-autoencoder-kl-x-1-5",
        "AsymmetricAutoencoderKL",
        8,
        4,
        "Stable Diffusion's encoder, larger decoder",
    ),
    OtherEntry(
        "consistency-decoder",
        "openai/consistency-decoder",
        "ConsistencyDecoderVAE",
        8,
        4,
        "Stable Diffusion's encoder, decodes in two diffusion steps",
    ),
)


@dataclass(frozen=True, slots=True)
class OtherCheckpoint:
    """A diffusers autoencoder found: its class, and the local folder with config.json and safetensors."""

    class_name: str
    folder: Path


def entries() -> tuple[OtherEntry, ...]:
    """The known ones, in the order they are listed to users."""
    return _TABLE


def find(name: str) -> OtherEntry | None:
    """The entry of a short name or hub repo id (case doesn't matter), or None."""
    wanted = name.lower()
    return next((entry for entry in _TABLE if wanted in (entry.name, entry.repo_id.lower())), None)


def find_checkpoint(files: Files) -> OtherCheckpoint | None:
    """The autoencoder in ``files``, at the top or in ``vae/``; None where it is a DC-AE.

    A pipeline's own config.json at the top does not hide the autoencoder in its ``vae/``. Raises ModelError's
    subclasses for anything else: no config.json, no autoencoder, no safetensors.
    """
    subfolder, class_name = first_config(files, _class_name)
    if class_name == DC_AE_CLASS:
        return None
    return OtherCheckpoint(class_name, fetch_weights(files, "diffusers", subfolder).parent)


def _class_name(config: Mapping[str, Any]) -> str:
    """The diffusers class that a config.json names; DC_AE_CLASS for efficientvit's layout, too."""
    if "_class_name" not in config and "model_name" in config:
        return DC_AE_CLASS
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise CheckpointError("names no _class_name, so it is no diffusers autoencoder; give another repo or folder")
    if not any(word in name for word in ("Autoencoder", "VAE", "VQModel")):
        raise CheckpointError(f"is of a {name}, which is no autoencoder; give the folder or repo of one")
    return name
