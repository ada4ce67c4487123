"""The two published checkpoint layouts, tensor by tensor, to and from this package's own parameter names.

``efficientvit`` is what mit-han-lab's repos hold, ``diffusers`` what its AutoencoderDC saves. Each native tensor is
one published tensor, but for the fused query-key-value weight, which diffusers splits in three, and for the 1x1
convolutions around attention, which diffusers stores as linear layers. Knows names and shapes; opens no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .diffusers_config import diffusers_config as diffusers_config
from .diffusers_config import spec_from_diffusers_config as spec_from_diffusers_config
from .network import DCAENetwork
from .spec import DCAESpec

Half = Literal["encoder", "decoder"]
Layout = Literal["efficientvit", "diffusers"]
Shape = tuple[int, ...]

# Module of a stage's block -> its published name. "conv" alone is a block's down- or upsampling.
_EFFICIENTVIT_BLOCK = {
    "conv": "main.conv.conv",
    "conv1": "main.conv1.conv",
    "conv2": "main.conv2.conv",
    "norm": "main.conv2.norm",
    "attention.qkv": "context_module.main.qkv.conv",
    "attention.aggregate.0": "context_module.main.aggreg.0.0",
    "attention.aggregate.1": "context_module.main.aggreg.0.1",
    "attention.proj": "context_module.main.proj.conv",
    "attention.norm": "context_module.main.proj.norm",
    "mlp.expand": "local_module.main.inverted_conv.conv",
    "mlp.depthwise": "local_module.main.depth_conv.conv",
    "mlp.point": "local_module.main.point_conv.conv",
    "mlp.norm": "local_module.main.point_conv.norm",
}
_DIFFUSERS_BLOCK = {
    "conv": "conv",
    "conv1": "conv1",
    "conv2": "conv2",
    "norm": "norm",
    "attention.aggregate.0": "attn.to_qkv_multiscale.0.proj_in",
    "attention.aggregate.1": "attn.to_qkv_multiscale.0.proj_out",
    "attention.proj": "attn.to_out",
    "attention.norm": "attn.norm_out",
    "mlp.expand": "conv_out.conv_inverted",
    "mlp.depthwise": "conv_out.conv_depth",
    "mlp.point": "conv_out.conv_point",
    "mlp.norm": "conv_out.norm",
}


@dataclass(frozen=True, slots=True)
class PublishedTensor:
    """One tensor as a checkpoint file names and shapes it."""

    name: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """Where one native tensor comes from: the published tensors, joined along dim 0 and viewed in its own shape."""

    shape: Shape
    sources: tuple[PublishedTensor, ...]

    def join(self, sources: list[Tensor]) -> Tensor:
        """The native tensor; a view of the published one where there is only one."""
        return (sources[0] if len(sources) == 1 else torch.cat(sources)).reshape(self.shape)

    def split(self, native: Tensor) -> list[Tensor]:
        """The published tensors, as views of the native one. The inverse of ``join``."""
        chunks = native.chunk(len(self.sources)) if len(self.sources) > 1 else [native]
        return [chunk.reshape(source.shape) for chunk, source in zip(chunks, self.sources, strict=True)]


def native_shapes(spec: DCAESpec, half: Half) -> dict[str, Shape]:
    """Name and shape of every tensor in one half's state dict, prefixed ``encoder.`` or ``decoder.``."""
    with torch.device("meta"):
        network = DCAENetwork(spec, with_encoder=half == "encoder", with_decoder=half == "decoder")
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def tensor_plans(spec: DCAESpec, half: Half, layout: Layout) -> dict[str, TensorPlan]:
    """How to read each native tensor of a half out of a checkpoint in ``layout``."""
    plans = {}
    for name, shape in native_shapes(spec, half).items():
        if layout == "efficientvit":
            sources: tuple[PublishedTensor, ...] = (PublishedTensor(_efficientvit_name(name, spec), shape),)
        else:
            sources = _diffusers_sources(name, shape)
        plans[name] = TensorPlan(shape, sources)
    return plans


def to_diffusers(state: Mapping[str, Tensor], spec: DCAESpec) -> dict[str, Tensor]:
    """A native state dict (one half or both) under diffusers' names and shapes, contiguous, ready to be saved.

    Raises KeyError on a tensor that ``spec`` doesn't have.
    """
    return _published(state, spec, "diffusers")


def to_efficientvit(state: Mapping[str, Tensor], spec: DCAESpec) -> dict[str, Tensor]:
    """A native state dict (one half or both) under efficientvit's names, contiguous, ready to be saved.

    Raises KeyError on a tensor that ``spec`` doesn't have.
    """
    return _published(state, spec, "efficientvit")


def from_published(state: Mapping[str, Tensor], spec: DCAESpec, half: Half, layout: Layout) -> dict[str, Tensor]:
    """The native tensors of one half out of a whole published state dict. Raises KeyError when one is missing."""
    return {
        name: plan.join([state[source.name] for source in plan.sources])
        for name, plan in tensor_plans(spec, half, layout).items()
    }


def _published(state: Mapping[str, Tensor], spec: DCAESpec, layout: Layout) -> dict[str, Tensor]:
    plans = {**tensor_plans(spec, "encoder", layout), **tensor_plans(spec, "decoder", layout)}
    published = {}
    for name, tensor in state.items():
        plan = plans[name]
        for source, part in zip(plan.sources, plan.split(tensor), strict=True):
            published[source.name] = part.contiguous()
    return published


def _efficientvit_name(name: str, spec: DCAESpec) -> str:
    half, rest = name.split(".", 1)
    module, leaf = rest.rsplit(".", 1)
    if rest.startswith("stages."):
        _, stage, index, block = module.split(".", 3)
        published = _EFFICIENTVIT_BLOCK[block]
        if block == "conv" and half == "encoder" and spec.encoder.downsample == "strided_conv":
            published = "main.conv"
        return f"{half}.stages.{stage}.op_list.{index}.{published}.{leaf}"
    return f"{half}.{_efficientvit_ends(half, spec)[module]}.{leaf}"


def _efficientvit_ends(half: str, spec: DCAESpec) -> dict[str, str]:
    """The modules before the first and after the last stage; shortcuts add a level, and so does resampling."""
    if half == "encoder":
        unshuffle = spec.encoder.downsample == "conv_unshuffle"
        return {
            "conv_in": "project_in.conv",
            "conv_in.conv": "project_in.conv.conv" if unshuffle else "project_in.conv",
            "conv_out": "project_out.main.op_list.0.conv" if spec.encoder.shortcut else "project_out.op_list.0.conv",
        }
    return {
        "conv_in": "project_in.main.conv" if spec.decoder.shortcut else "project_in.conv",
        "norm_out": "project_out.op_list.0",
        "conv_out": "project_out.op_list.2.conv",
        "conv_out.conv": "project_out.op_list.2.conv.conv",
    }


def _diffusers_sources(name: str, shape: Shape) -> tuple[PublishedTensor, ...]:
    half, rest = name.split(".", 1)
    if not rest.startswith("stages."):
        return (PublishedTensor(name, shape),)
    module, leaf = rest.rsplit(".", 1)
    _, stage, index, block = module.split(".", 3)
    prefix = f"{half}.{'down' if half == 'encoder' else 'up'}_blocks.{stage}.{index}"
    if block == "attention.qkv":
        split = (shape[0] // 3, shape[1])
        return tuple(PublishedTensor(f"{prefix}.attn.to_{part}.{leaf}", split) for part in "qkv")
    published_shape = shape[:2] if block == "attention.proj" else shape
    return (PublishedTensor(f"{prefix}.{_DIFFUSERS_BLOCK[block]}.{leaf}", published_shape),)
