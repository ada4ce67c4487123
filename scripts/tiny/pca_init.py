"""The network and its start: hierarchical PCA, the best linear code that the down- and upsampling layers can hold.

Every stage takes the PCA of the previous stage's 2x2 blocks. The strided convolution gets that map minus what the
averaging shortcut does already; the decoder gets the transposes minus the duplicating shortcut; every residual branch
starts at zero. Training starts where a linear code ends (about 24 dB) and not at noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_cache.models.network import DCAENetwork, Downsample, Upsample
from dcae_cache.models.spec import DCAESpec, DecoderSpec, EncoderSpec, Stage

_CONSTANT = 8.0  # one channel before the last norm is this large, so that the norm hardly moves with the picture
_SIGMAS = 4.0  # how far the last ReLU's input is lifted above zero


def tiny_spec() -> DCAESpec:
    """f32c32-tiny: one block a stage, two at the last. The encoder's first stage is thin: it costs the most time."""

    def stages(widths: tuple[int, ...]) -> tuple[Stage, ...]:
        depths = (0, 1, 1, 1, 1, 2)
        blocks = ("res",) * 5 + ("evit",)
        return tuple(Stage(*row) for row in zip(widths, depths, blocks, strict=True))

    encoder = EncoderSpec(stages((16, 16, 64, 128, 256, 128)), downsample="strided_conv")
    decoder = DecoderSpec(stages((32, 32, 64, 128, 256, 128)), upsample="conv_shuffle")
    return DCAESpec(32, encoder, decoder)


@dataclass
class Level:
    """One step of the hierarchy: orthonormal rows ``basis`` [k, 4 * k_before] and each coefficient's deviation."""

    basis: Tensor
    std: Tensor


def fit_levels(crops: Tensor, widths: list[int]) -> tuple[Tensor, list[Level]]:
    """PCA of 2x2 blocks, over and over: the pixel mean [3] and a level a stage. Crops are [N, 3, H, W], [-1, 1]."""
    mean = crops.mean(dim=(0, 2, 3))
    values = crops - mean[:, None, None]
    levels: list[Level] = []
    for width in widths:
        values = F.pixel_unshuffle(values, 2)
        rows = values.movedim(1, -1).flatten(0, 2)
        covariance = (rows.T @ rows).double() / len(rows)
        variance, vectors = torch.linalg.eigh(covariance)
        order = variance.argsort(descending=True)[:width]
        basis = vectors[:, order].T.float()
        levels.append(Level(basis, variance[order].clamp_min(1e-8).sqrt().float()))
        values = F.conv2d(values, basis[:, :, None, None])
    return mean, levels


def average_matrix(in_channels: int, out_channels: int, group: int) -> Tensor:
    """What the averaging shortcut does, as a matrix [out, in] over (unshuffled) channels."""
    matrix = torch.zeros(out_channels, in_channels)
    for row in range(out_channels):
        matrix[row, row * group : (row + 1) * group] = 1.0 / group
    return matrix


def embed(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix in the top-left corner of zeros: channels beyond the PCA's start unused."""
    return F.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))


def set_downsample(layer: Downsample, matrix: Tensor) -> None:
    """Make the layer compute ``matrix`` [k, 4 * k_before] on unshuffled 2x2 blocks (taps 1 and 2 of the 3x3)."""
    out_channels, in_channels = layer.conv.weight.shape[:2]
    whole = embed(matrix, out_channels, 4 * in_channels)
    if layer.shortcut_group:
        whole = whole - average_matrix(4 * in_channels, out_channels, layer.shortcut_group)
    layer.conv.weight.zero_()
    layer.conv.weight[:, :, 1:, 1:] = whole.view(out_channels, in_channels, 2, 2)


def set_upsample(layer: Upsample, matrix: Tensor) -> None:
    """Make the layer compute ``matrix`` [4 * k_after, k] from one position to a 2x2 block."""
    out_channels, in_channels = layer.conv.weight.shape[:2]
    whole = embed(matrix, out_channels, in_channels)
    if layer.shortcut_repeats:
        rows = torch.arange(out_channels)
        whole[rows, rows // layer.shortcut_repeats] -= 1.0
    layer.conv.weight.zero_()
    layer.conv.weight[:, :, 1, 1] = whole
    nn.init.zeros_(layer.conv.bias)


def scaled(level: Level, before: Tensor | None) -> Tensor:
    """The level's map between channels that are kept at coefficient * std^-0.5 (and not at the plain coefficient)."""
    columns = torch.ones(3) if before is None else before.sqrt()
    return level.basis / level.std.sqrt()[:, None] * columns.repeat_interleave(4)[None, :]


@torch.no_grad()
def start_at_pca(network: DCAENetwork, crops: Tensor) -> None:
    """Set every weight so that the whole network is the hierarchical PCA of these crops."""
    encoder, decoder = network.encoder, network.decoder
    assert encoder is not None
    assert decoder is not None
    widths = [12, *(stage[0].conv1.out_channels for stage in list(encoder.stages)[2:5]), encoder.conv_out.in_channels]
    widths[1] = min(48, widths[1])
    mean, levels = fit_levels(crops, widths)
    for module in network.modules():
        if hasattr(module, "norm") and isinstance(module.norm, nn.Module):
            nn.init.zeros_(module.norm.weight)
    downs = [encoder.conv_in, *(stage[-1] for stage in list(encoder.stages)[1:-1])]
    ups = [decoder.conv_out, *(stage[0] for stage in list(decoder.stages)[1:-1])]
    before: Tensor | None = None
    for level, down, up in zip(levels, downs, ups, strict=True):
        forward = scaled(level, before)
        backward = torch.linalg.pinv(forward)
        nn.init.zeros_(_conv(down).bias)
        if before is None:
            nn.init.zeros_(_conv(down).weight)
            _conv(down).weight[: len(forward), :, 1:, 1:] = forward.view(-1, 3, 2, 2)
            _conv(down).bias[: len(forward)] = -forward @ mean.repeat_interleave(4)
            _set_output(decoder, backward, mean, level)
        else:
            set_downsample(down, forward)
            set_upsample(up, backward)
        before = level.std
    ups[1].conv.bias.view(-1, 4)[12] = _CONSTANT
    _set_latent(network, levels[-1])


def _conv(layer: nn.Module) -> nn.Conv2d:
    """The convolution of a down- or upsampling layer."""
    conv = layer.conv
    assert isinstance(conv, nn.Conv2d)
    return conv


def _set_output(decoder: nn.Module, backward: Tensor, mean: Tensor, level: Level) -> None:
    """Keep the last norm and ReLU near linear: a large constant channel, a lift above zero, taken off at the end."""
    set_upsample(decoder.conv_out, backward)
    deviation = level.std.sqrt()
    rms = ((_CONSTANT**2 + deviation.square().sum()) / len(decoder.norm_out.weight)).sqrt()
    nn.init.zeros_(decoder.norm_out.bias)
    decoder.norm_out.weight.fill_(float(rms))
    decoder.norm_out.bias[: len(deviation)] = _SIGMAS * deviation
    decoder.conv_out.conv.bias.copy_(mean.repeat_interleave(4) - backward @ (_SIGMAS * deviation))


def _set_latent(network: DCAENetwork, level: Level) -> None:
    """The first PCA channels become the latents, at unit deviation, and come back."""
    encoder, decoder = network.encoder, network.decoder
    latent, width = encoder.conv_out.weight.shape[:2]
    gain = level.std[:latent].rsqrt()
    inward = embed(torch.diag(gain), latent, width) - average_matrix(width, latent, encoder.shortcut_group)
    outward = embed(torch.diag(1 / gain), width, latent)
    rows = torch.arange(width)
    outward[rows, rows // decoder.shortcut_repeats] -= 1.0
    for conv, matrix in ((encoder.conv_out, inward), (decoder.conv_in, outward)):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        conv.weight[:, :, 1, 1] = matrix
