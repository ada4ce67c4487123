"""The DC-AE network: plain modules that cover every published DC-AE encoder and decoder.

Pixels [N, 3, H, W] in [-1, 1] -> raw latents [N, c, H/f, W/f] -> pixels. Deterministic: there is no posterior.
Knows nothing of checkpoints, scaling factors, devices or files. Parameter names are this project's own;
``layouts.py`` maps the two published checkpoint layouts onto them.

Formulas: "Deep Compression Autoencoder" (arXiv 2410.10733) for the residual down- and upsampling; constants as in
the published models. What happens between convolutions is in ``steps.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import HEAD_DIM, DCAESpec, DecoderSpec, EncoderSpec, Stage
from .steps import ACTIVATIONS, EAGER, RMSNorm2d, Steps, add


class Block(nn.Module):
    """A part of the network whose steps between convolutions can be exchanged (``DCAENetwork.use``)."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: Steps = EAGER


class ResBlock(Block):
    """Two 3x3 convolutions with a norm after the second, added to the input."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        width = stage.width
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.act = stage.act
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = RMSNorm2d(width) if stage.norm == "rms" else nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.steps.activated(self.conv1, x, self.act)
        return self.steps.normed_sum(self.norm, self.conv2(hidden), x)


class LinearAttention(Block):
    """ReLU linear attention over all positions in heads of 32 channels, optionally with a 5x5-aggregated second scale.

    The two matrix products run in fp32 whatever the dtype or autocast: their sums run over all positions and pass
    fp16's range. Where the reference switches to the quadratic form (32 positions or fewer), the result is the same
    sum in another order; the linear form is used throughout.
    """

    def __init__(self, width: int, multiscale: bool) -> None:
        super().__init__()
        heads = width // HEAD_DIM
        inner = heads * HEAD_DIM
        self.qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        self.aggregate: nn.Sequential | None = None
        if multiscale:
            self.aggregate = nn.Sequential(
                nn.Conv2d(3 * inner, 3 * inner, 5, padding=2, groups=3 * inner, bias=False),
                nn.Conv2d(3 * inner, 3 * inner, 1, groups=3 * heads, bias=False),
            )
        self.proj = nn.Conv2d((2 if multiscale else 1) * inner, width, 1, bias=False)
        self.norm = RMSNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        if self.aggregate is not None:
            qkv = torch.cat([qkv, self.aggregate(qkv)], dim=1)
        return self.steps.normed_sum(self.norm, self.proj(self.steps.attended(qkv, x.dtype)), x)


class GatedMLP(Block):
    """Inverted bottleneck with a depthwise 3x3 convolution and a SiLU gate (GLUMBConv), added to the input."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = expansion * width
        self.expand = nn.Conv2d(width, 2 * hidden, 1)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.point = nn.Conv2d(hidden, width, 1, bias=False)
        self.norm = RMSNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.steps.gated(self.depthwise, self.steps.activated(self.expand, x, "silu"))
        return self.steps.normed_sum(self.norm, self.point(hidden), x)


class EfficientViTBlock(nn.Sequential):
    """Global context by linear attention, then local mixing by the gated MLP."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.attention = LinearAttention(stage.width, multiscale=stage.block == "evit_multiscale")
        self.mlp = GatedMLP(stage.width)


class Downsample(nn.Module):
    """Halve the size: a 3x3 convolution (strided, or then pixel-unshuffle) plus the channel-averaging shortcut."""

    def __init__(self, in_channels: int, out_channels: int, unshuffle: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.shortcut_group = 4 * in_channels // out_channels if shortcut else 0
        if unshuffle:
            self.conv = nn.Conv2d(in_channels, out_channels // 4, 3, padding=1)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        if self.unshuffle:
            out = F.pixel_unshuffle(out, 2)
        if self.shortcut_group:
            out = add(out, average_channels(F.pixel_unshuffle(x, 2), self.shortcut_group))
        return out


class Upsample(nn.Module):
    """Double the size: a 3x3 convolution (then pixel-shuffle, or after interpolation) plus the repeating shortcut."""

    def __init__(self, in_channels: int, out_channels: int, interpolate: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.interpolate = interpolate
        self.shortcut_repeats = 4 * out_channels // in_channels if shortcut else 0
        self.conv = nn.Conv2d(in_channels, out_channels if interpolate else 4 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.interpolate:
            out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        else:
            out = F.pixel_shuffle(self.conv(x), 2)
        if self.shortcut_repeats:
            out = add(out, F.pixel_shuffle(x.repeat_interleave(self.shortcut_repeats, dim=1), 2))
        return out


def average_channels(x: Tensor, group: int) -> Tensor:
    """Mean over runs of ``group`` channels: [N, C, H, W] -> [N, C / group, H, W]."""
    return x.view(x.shape[0], -1, group, *x.shape[2:]).mean(dim=2) if group > 1 else x


class Encoder(nn.Module):
    """Pixels [N, 3, H, W] in [-1, 1] to raw latents [N, c, H/f, W/f]."""

    def __init__(self, spec: EncoderSpec, latent_channels: int) -> None:
        super().__init__()
        unshuffle = spec.downsample == "conv_unshuffle"
        first, last = spec.stages[0], spec.stages[-1]
        self.conv_in = (
            nn.Conv2d(3, first.width, 3, padding=1)
            if first.depth
            else Downsample(3, spec.stages[1].width, unshuffle, shortcut=False)
        )
        self.stages = nn.ModuleList()
        for index, stage in enumerate(spec.stages):
            layers = _blocks(stage)
            if stage.depth and index + 1 < len(spec.stages):
                layers.append(Downsample(stage.width, spec.stages[index + 1].width, unshuffle))
            self.stages.append(nn.Sequential(*layers))
        self.conv_out = nn.Conv2d(last.width, latent_channels, 3, padding=1)
        self.shortcut_group = last.width // latent_channels if spec.shortcut else 0

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for stage in self.stages:
            x = stage(x)
        latents: Tensor = self.conv_out(x)
        if self.shortcut_group:
            latents = add(latents, average_channels(x, self.shortcut_group))
        return latents


class Decoder(nn.Module):
    """Raw latents [N, c, h, w] to pixels [N, 3, h*f, w*f], around [-1, 1] and not clamped.

    Latents may hold a leading subset of the channels if the model has no shortcut at the latent (DC-AE 1.5):
    the missing ones count as zero.
    """

    def __init__(self, spec: DecoderSpec, latent_channels: int) -> None:
        super().__init__()
        interpolate = spec.upsample == "interpolate_conv"
        first, last = spec.stages[0], spec.stages[-1]
        self.latent_channels = latent_channels
        self.conv_in = nn.Conv2d(latent_channels, last.width, 3, padding=1)
        self.shortcut_repeats = last.width // latent_channels if spec.shortcut else 0
        self.stages = nn.ModuleList()
        for index, stage in enumerate(spec.stages):
            layers = _blocks(stage)
            if stage.depth and index + 1 < len(spec.stages):
                layers.insert(0, Upsample(spec.stages[index + 1].width, stage.width, interpolate))
            self.stages.append(nn.Sequential(*layers))
        width = first.width if first.depth else spec.stages[1].width
        self.norm_out = RMSNorm2d(width)
        self.act_out = ACTIVATIONS[spec.out_act]
        self.conv_out = (
            nn.Conv2d(width, 3, 3, padding=1) if first.depth else Upsample(width, 3, interpolate, shortcut=False)
        )

    def forward(self, latents: Tensor) -> Tensor:
        missing = self.latent_channels - latents.shape[1]
        x = self.conv_in(F.pad(latents, (0, 0, 0, 0, 0, missing)) if missing else latents)
        if self.shortcut_repeats:
            x = add(x, latents.repeat_interleave(self.shortcut_repeats, dim=1))
        for stage in reversed(self.stages):
            x = stage(x)
        pixels: Tensor = self.conv_out(self.act_out(self.norm_out(x)))
        return pixels


class DCAENetwork(nn.Module):
    """Encoder and decoder of one spec; either half can be left out (then it is None and its weights aren't needed)."""

    def __init__(self, spec: DCAESpec, *, with_encoder: bool = True, with_decoder: bool = True) -> None:
        super().__init__()
        self.encoder = Encoder(spec.encoder, spec.latent_channels) if with_encoder else None
        self.decoder = Decoder(spec.decoder, spec.latent_channels) if with_decoder else None

    def use(self, steps: Steps) -> None:
        """From now on take these steps between convolutions."""
        for module in self.modules():
            if isinstance(module, Block):
                module.steps = steps


def memory_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """The layout in memory in which the network runs fastest, for weights and input alike."""
    exact_cuda = device.type == "cuda" and dtype == torch.float32
    return torch.contiguous_format if exact_cuda else torch.channels_last


def _blocks(stage: Stage) -> list[nn.Module]:
    block = ResBlock if stage.block == "res" else EfficientViTBlock
    return [block(stage) for _ in range(stage.depth)]
