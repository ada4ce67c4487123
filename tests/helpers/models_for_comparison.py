"""Small random autoencoders of every diffusers class that `compare` knows, saved as local folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

DOWN = {"down_block_types": ("DownEncoderBlock2D",) * 3, "layers_per_block": 1, "norm_num_groups": 4}
UNET = {
    "decoder_block_out_channels": (32, 32),
    "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
    "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    "decoder_layers_per_block": 1,
    "decoder_norm_num_groups": 4,
}
# kind -> (class, settings, factor, latent channels)
KINDS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "tiny": (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8),
            "num_encoder_blocks": (1, 1, 1),
            "num_decoder_blocks": (1, 1, 1),
        },
        4,
        4,
    ),
    "kl": (
        "AutoencoderKL",
        {**DOWN, "up_block_types": ("UpDecoderBlock2D",) * 3, "block_out_channels": (8, 8, 16), "latent_channels": 6},
        4,
        6,
    ),
    "asymmetric": (
        "AsymmetricAutoencoderKL",
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "down_block_out_channels": (8, 8),
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "up_block_out_channels": (8, 16),
            "norm_num_groups": 4,
        },
        2,
        4,
    ),
    "dc": (
        "AutoencoderDC",
        {
            "latent_channels": 8,
            "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 16, 32),
            "decoder_block_out_channels": (8, 16, 32),
            "encoder_layers_per_block": (0, 1, 1),
            "decoder_layers_per_block": (1, 1, 1),
            "encoder_qkv_multiscales": ((), (), ()),
            "decoder_qkv_multiscales": ((), (), ()),
            "decoder_norm_types": ("rms_norm",) * 3,
            "decoder_act_fns": ("silu",) * 3,
        },
        4,
        8,
    ),
    "consistency": (
        "ConsistencyDecoderVAE",
        {
            "encoder_block_out_channels": (8, 16),
            "encoder_down_block_types": ("DownEncoderBlock2D",) * 2,
            "encoder_layers_per_block": 1,
            "encoder_norm_num_groups": 4,
            **UNET,
        },
        2,
        4,
    ),
}


def save_model(root: Path, kind: str, seed: int = 0) -> Path:
    """A folder in diffusers layout with a random model of that kind. Leaves torch's random state as it was."""
    import diffusers

    class_name, settings, _, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = getattr(diffusers, class_name)(**settings)
        # Larger weights than the usual first ones, or all outputs would be nearly the same grey.
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(1.5)
    network.save_pretrained(root / kind, safe_serialization=True)
    return root / kind
