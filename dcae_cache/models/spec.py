"""What a DC-AE network looks like: small typed specs, one per architecture family.

A spec is everything needed to build the network and nothing else: no weights, no names, no hub.
It imports no torch, so that tables of models can be read without it.

Sources: the published configurations of mit-han-lab/efficientvit and dc-ai-projects/DC-Gen, and the papers
"Deep Compression Autoencoder" (arXiv 2410.10733) and "DC-AE 1.5" (arXiv 2508.00413).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import UsageError

BlockKind = Literal["res", "evit", "evit_multiscale"]
NormKind = Literal["rms", "batch"]
ActKind = Literal["silu", "relu"]
DownsampleKind = Literal["conv_unshuffle", "strided_conv"]
UpsampleKind = Literal["conv_shuffle", "interpolate_conv"]

HEAD_DIM = 32  # channels per attention head, in every published model


@dataclass(frozen=True, slots=True)
class Stage:
    """One resolution: ``depth`` blocks of ``width`` channels. Depth 0: the first stage is passed over."""

    width: int
    depth: int
    block: BlockKind = "res"
    norm: NormKind = "rms"
    act: ActKind = "silu"


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Stages from fine to coarse. ``shortcut``: channel averaging around the last convolution (1.5 has none)."""

    stages: tuple[Stage, ...]
    downsample: DownsampleKind = "conv_unshuffle"
    shortcut: bool = True


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Stages from fine to coarse, run in reverse. ``shortcut``: channel duplication around the first convolution."""

    stages: tuple[Stage, ...]
    upsample: UpsampleKind = "conv_shuffle"
    shortcut: bool = True
    out_act: ActKind = "relu"


@dataclass(frozen=True, slots=True)
class DCAESpec:
    """A whole autoencoder: RGB to ``latent_channels`` (c) at 1/``spatial_compression_ratio`` (f) of the size."""

    latent_channels: int
    encoder: EncoderSpec
    decoder: DecoderSpec

    @property
    def spatial_compression_ratio(self) -> int:
        """f: every stage but the last halves the size, and an empty first stage halves it on entry."""
        return int(2 ** (len(self.encoder.stages) - 1))

    @property
    def has_channel_subsets(self) -> bool:
        """Whether the first few latent channels alone are a latent, too: so DC-AE 1.5 is trained. Its mark is that
        nothing ties the channels at the latent together, neither averaging on the way in nor repeating on the way out.
        """
        return not (self.encoder.shortcut or self.decoder.shortcut)

    def channels(self, wanted: int | None) -> int:
        """How many latent channels there are where the first ``wanted`` are to be used; None: all of them.

        Raises UsageError for a number that this architecture doesn't have.
        """
        if wanted is None or wanted == self.latent_channels:
            return self.latent_channels
        if not self.has_channel_subsets:
            raise UsageError(
                f"`latent_channels` is {wanted}, but this model's {self.latent_channels} channels mean something only "
                "together; leave it out. Models with subsets are those of DC-AE 1.5, such as f32c128-1.5."
            )
        if not 0 < wanted < self.latent_channels:
            raise UsageError(f"`latent_channels` is {wanted}; this model has 1 to {self.latent_channels}.")
        return wanted

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> DCAESpec:
        """Build a spec from ``to_dict``'s values.

        Raises KeyError or TypeError when a field is missing or unknown.
        """
        encoder, decoder = dict(values["encoder"]), dict(values["decoder"])
        encoder["stages"] = tuple(Stage(**stage) for stage in encoder["stages"])
        decoder["stages"] = tuple(Stage(**stage) for stage in decoder["stages"])
        return DCAESpec(values["latent_channels"], EncoderSpec(**encoder), DecoderSpec(**decoder))


def stages(
    widths: Sequence[int],
    depths: Sequence[int],
    blocks: BlockKind | Sequence[BlockKind] = "res",
    norms: NormKind | Sequence[NormKind] = "rms",
    acts: ActKind | Sequence[ActKind] = "silu",
) -> tuple[Stage, ...]:
    """One Stage per width, from fine to coarse; a kind given once holds for all of them.

    Raises ValueError when the sequences differ in length.
    """
    kinds = [[kind] * len(widths) if isinstance(kind, str) else kind for kind in (blocks, norms, acts)]
    return tuple(Stage(*row) for row in zip(widths, depths, *kinds, strict=True))
