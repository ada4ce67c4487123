"""The ``config.json`` of diffusers' AutoencoderDC, to and from a DCAESpec.

Knows the configuration's words and its class defaults, nothing of tensors, files or torch. Only what published
models use is accepted; anything else is refused by name rather than built almost right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ..errors import CheckpointError
from .spec import HEAD_DIM, ActKind, BlockKind, DCAESpec, DecoderSpec, EncoderSpec, NormKind, Stage

CLASS_NAME = "AutoencoderDC"

# What AutoencoderDC assumes for a key its config.json leaves out; files written by older releases leave out several.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": HEAD_DIM,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
}
# Far beyond any published model; a config.json must not make us build what no weights can fill.
MAX_STAGES, MAX_WIDTH, MAX_DEPTH = 12, 16_384, 256
_NORMS: dict[str, NormKind] = {"rms_norm": "rms", "batch_norm": "batch"}
_NORM_NAMES = {kind: name for name, kind in _NORMS.items()}


def diffusers_config(spec: DCAESpec, scaling_factor: float | None) -> dict[str, Any]:
    """The JSON values that make diffusers build ``spec``; ``scaling_factor`` is left out when None."""
    encoder, decoder = spec.encoder, spec.decoder
    config: dict[str, Any] = {
        "_class_name": CLASS_NAME,
        "in_channels": 3,
        "latent_channels": spec.latent_channels,
        "attention_head_dim": HEAD_DIM,
        **_stage_values("encoder", encoder.stages),
        **_stage_values("decoder", decoder.stages),
        "decoder_norm_types": [_NORM_NAMES[stage.norm] for stage in decoder.stages],
        "decoder_act_fns": [stage.act for stage in decoder.stages],
        "downsample_block_type": "pixel_unshuffle" if encoder.downsample == "conv_unshuffle" else "conv",
        "upsample_block_type": "pixel_shuffle" if decoder.upsample == "conv_shuffle" else "interpolate",
        "encoder_out_shortcut": encoder.shortcut,
        "decoder_in_shortcut": decoder.shortcut,
        "decoder_conv_act_fn": decoder.out_act,
    }
    return config if scaling_factor is None else {**config, "scaling_factor": scaling_factor}


def spec_from_diffusers_config(config: Mapping[str, Any]) -> tuple[DCAESpec, float | None]:
    """The spec and scaling factor a ``config.json`` states.

    The factor is None when the key is missing or 1.0: that is the class default, written when nobody set one.
    Raises CheckpointError naming the key that is wrong or that no published DC-AE uses.
    """
    if config.get("_class_name") != CLASS_NAME:
        raise CheckpointError(f"_class_name is {config.get('_class_name')!r}, expected {CLASS_NAME!r}")
    values = {**_DEFAULTS, **config}
    for key in ("in_channels", "attention_head_dim"):
        if values[key] != _DEFAULTS[key]:
            raise _refusal(key, values[key], str(_DEFAULTS[key]))
    encoder = EncoderSpec(
        _stages(values, "encoder"),
        downsample="conv_unshuffle"
        if _choice(values, "downsample_block_type", "pixel_unshuffle", "conv")
        else "strided_conv",
        shortcut=_flag(values, "encoder_out_shortcut"),
    )
    decoder = DecoderSpec(
        _stages(values, "decoder"),
        upsample="conv_shuffle"
        if _choice(values, "upsample_block_type", "pixel_shuffle", "interpolate")
        else "interpolate_conv",
        shortcut=_flag(values, "decoder_in_shortcut"),
        out_act="relu" if _choice(values, "decoder_conv_act_fn", "relu", "silu") else "silu",
    )
    spec = DCAESpec(_positive(values, "latent_channels"), encoder, decoder)
    _check_shape(spec)
    return spec, _scaling_factor(config)


def _stage_values(half: str, stages: tuple[Stage, ...]) -> dict[str, Any]:
    return {
        f"{half}_block_types": ["ResBlock" if stage.block == "res" else "EfficientViTBlock" for stage in stages],
        f"{half}_block_out_channels": [stage.width for stage in stages],
        f"{half}_layers_per_block": [stage.depth for stage in stages],
        f"{half}_qkv_multiscales": [[5] if stage.block == "evit_multiscale" else [] for stage in stages],
    }


def _stages(values: Mapping[str, Any], half: str) -> tuple[Stage, ...]:
    widths = values[f"{half}_block_out_channels"]
    if not isinstance(widths, list) or not 2 <= len(widths) <= MAX_STAGES:
        raise _refusal(f"{half}_block_out_channels", widths, f"a list of 2 to {MAX_STAGES} widths")

    def per_stage(key: str) -> list[Any]:
        value = values[key]
        items = [value] * len(widths) if isinstance(value, str) else value
        if not isinstance(items, list) or len(items) != len(widths):
            raise _refusal(key, value, f"{len(widths)} values, one per width")
        return items

    depths = per_stage(f"{half}_layers_per_block")
    types = per_stage(f"{half}_block_types")
    scales = per_stage(f"{half}_qkv_multiscales")
    norms = per_stage("decoder_norm_types") if half == "decoder" else ["rms_norm"] * len(widths)
    acts = per_stage("decoder_act_fns") if half == "decoder" else ["silu"] * len(widths)
    stages = []
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if not _is_count(width) or width == 0 or not _is_count(depth) or (depth == 0 and index > 0):
            raise _refusal(f"{half} stage {index}", (width, depth), "a positive width and depth (0 only in the first)")
        if width > MAX_WIDTH or depth > MAX_DEPTH:
            limits = f"a width of at most {MAX_WIDTH} and a depth of at most {MAX_DEPTH}"
            raise _refusal(f"{half} stage {index}", (width, depth), limits)
        kind = _block(half, types[index], scales[index])
        stages.append(Stage(width, depth, kind, _norm(norms[index], kind), _act(acts[index])))
    return tuple(stages)


def _block(half: str, name: Any, scales: Any) -> BlockKind:
    if name == "ResBlock":
        return "res"
    if name != "EfficientViTBlock":
        raise _refusal(f"{half}_block_types", name, "'ResBlock' or 'EfficientViTBlock'")
    if scales not in ([], [5]):
        raise _refusal(f"{half}_qkv_multiscales", scales, "[] or [5]")
    return "evit_multiscale" if scales else "evit"


def _norm(name: Any, block: BlockKind) -> NormKind:
    allowed = _NORMS if block == "res" else {"rms_norm": _NORMS["rms_norm"]}
    if not isinstance(name, str) or name not in allowed:
        raise _refusal("decoder_norm_types", name, " or ".join(map(repr, allowed)) + f" in a {block} stage")
    return allowed[name]


def _act(name: Any) -> ActKind:
    if name == "silu":
        return "silu"
    if name == "relu":
        return "relu"
    raise _refusal("decoder_act_fns", name, "'silu' or 'relu'")


def _choice(values: Mapping[str, Any], key: str, first: str, second: str) -> bool:
    value = str(values[key]).lower()
    if value not in (first, second):
        raise _refusal(key, values[key], f"{first!r} or {second!r}")
    return value == first


def _flag(values: Mapping[str, Any], key: str) -> bool:
    if not isinstance(values[key], bool):
        raise _refusal(key, values[key], "true or false")
    return bool(values[key])


def _positive(values: Mapping[str, Any], key: str) -> int:
    if not _is_count(values[key]) or not 0 < values[key] <= MAX_WIDTH:
        raise _refusal(key, values[key], f"an integer from 1 to {MAX_WIDTH}")
    return int(values[key])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _scaling_factor(config: Mapping[str, Any]) -> float | None:
    value = config.get("scaling_factor")
    if value is None or value == 1.0:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise _refusal("scaling_factor", value, "a positive number")
    return float(value)


def _check_shape(spec: DCAESpec) -> None:
    """Refuse widths the shortcuts can't average or repeat, and halves of different depth."""
    if len(spec.encoder.stages) != len(spec.decoder.stages):
        raise _refusal("decoder_block_out_channels", len(spec.decoder.stages), f"{len(spec.encoder.stages)} widths")
    for half in (spec.encoder, spec.decoder):
        widths = [stage.width for stage in half.stages]
        used = widths if half.stages[0].depth else widths[1:]
        if any(coarse % 4 or 4 * fine % coarse for fine, coarse in pairwise(used)):
            raise _refusal("block_out_channels", widths, "multiples of 4, each dividing four times the one before")
        if half.shortcut and widths[-1] % spec.latent_channels:
            raise _refusal("latent_channels", spec.latent_channels, f"a divisor of the last width {widths[-1]}")
        if any(stage.block != "res" and stage.width % HEAD_DIM for stage in half.stages):
            raise _refusal("block_out_channels", widths, f"multiples of {HEAD_DIM} in attention stages")


def _refusal(key: str, found: Any, expected: str) -> CheckpointError:
    text = repr(found)
    return CheckpointError(f"{key} is {text if len(text) <= 200 else text[:199] + '…'}, expected {expected}")
