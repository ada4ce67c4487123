"""The autoencoder that a cache was made with, opened again: to decode what is stored, and to encode anew as it was.

Decoding is in fp32 whatever the recipe says: what is judged is the latents. Knows nothing of sources or scores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..cache.known import is_known
from ..compute.devices import TORCH_DTYPES
from ..compute.memory import free_bytes
from ..errors import CheckpointError, UsageError, VerificationError
from ..models import zoo
from ..models.activations import automatic_batches
from ..models.autoencoder import Autoencoder, Codec
from ..models.dcae import DCAE
from ..models.folder import Checkpoint, is_variant
from ..models.hub import resolve
from ..models.latent_encoder import LatentEncoder
from ..models.options import HubOptions
from ..models.preflight import open_checked
from ..records import Bucket


class CacheModel:
    """Both halves of a cache's autoencoder, the encoder in the dtype it was computed in.

    ``index``: that of the cache. ``name``: where the model is now, if it moved. Raises VerificationError where its
    encoder has other weights than the one of the cache, ModelError's subclasses where it can't be had.
    """

    def __init__(
        self, index: Mapping[str, Any], device: torch.device, name: str | None = None, hub: HubOptions | None = None
    ) -> None:
        self.recipe: dict[str, Any] = dict(index["recipe"])
        self.device = device
        model, hub = index["model"], hub or HubOptions()
        found = name or _believed(model["repo_id"] or self.recipe["model_source"])
        dtype = TORCH_DTYPES[self.recipe["compute_dtype"]]
        checkpoint = _find(found, hub, None if name else model["revision"], self.recipe.get("variant"), bool(name))
        try:
            channels = checkpoint.spec.channels(self.recipe["latent_channels"])
        except UsageError as error:
            raise VerificationError(
                f"{found} is not the model of this cache: the cache's latents have {self.recipe['latent_channels']} "
                f"channels, the model's {checkpoint.spec.latent_channels}. Name the right one with `model`."
            ) from error
        open_encoder = partial(DCAE, checkpoint, device, dtype, with_decoder=False, latent_channels=channels)
        self._encoder = open_checked(open_encoder, device, dtype, "device")
        if model["weights_sha256"] not in (None, self._encoder.encoder_sha256):  # None: imported, so not known
            raise VerificationError(
                f"{found} is not the model of this cache: its encoder's weights have sha256 "
                f"{self._encoder.encoder_sha256}, the cache was made with {model['weights_sha256']} "
                f"({model['name']}). Name the right one with `model`."
            )
        self._decoder = DCAE(self._encoder.checkpoint, device, torch.float32, with_encoder=False)
        self._scaling_factor: float = self.recipe["scaling_factor"]
        self.num_weight_bytes = self._encoder.num_weight_bytes + self._decoder.num_weight_bytes
        self.codec: Codec = _Halves(self._encoder, self._decoder)
        self._autoencoder = Autoencoder(self.codec, self.num_weight_bytes)

    def decode(self, stored: Tensor) -> Tensor:
        """Latents as stored [N, c, h, w] to images uint8 [N, 3, H, W] on the CPU, as many at once as memory allows."""
        return self._autoencoder.decode(self.raw(stored))

    def automatic_batches(self) -> Callable[[Bucket], int]:
        """How many latents to decode at once, by the size of their images."""
        spec = self._decoder.checkpoint.spec
        return automatic_batches(self.device, spec, "decoder", self._decoder.dtype, free_bytes(self.device))

    def raw(self, stored: Tensor) -> Tensor:
        """Latents as stored, to raw ones in fp32."""
        return stored.to(torch.float32) / self._scaling_factor

    def encoder(self, streams: int = 1) -> LatentEncoder:
        """An encoder of pixels to latents as the cache's recipe makes and stores them, on a CPU ``streams`` batches at
        once."""
        return LatentEncoder(self._encoder, self.recipe["dtype"], self._scaling_factor, self.recipe["flip"], streams)


def _believed(recorded: str) -> str:
    """The model that a cache names, if it is a published one or one that this person has named before: a cache may
    come from anyone, and must not choose what is fetched or opened."""
    if zoo.find(recorded) is None and not is_known(recorded):
        raise VerificationError(
            f"The cache says that it was made with the model {recorded}. You have not named it on this machine, so it "
            "was neither fetched nor opened. Name the model yourself with `model`."
        )
    return recorded


def _find(name: str, hub: HubOptions, revision: str | None, variant: Any, moved: bool) -> Checkpoint:
    """The model, with the variant of its weights that the recipe names; where it moved to there may be but one."""
    place = os.path.expanduser(name)
    try:
        return resolve(place, hub, revision=revision, variant=variant if is_variant(variant) else None)
    except CheckpointError:
        if variant is None or not moved:
            raise
        return resolve(place, hub, revision=revision)


class _Halves:
    """An encoder and a decoder of different dtypes, as the one codec that ``Autoencoder`` wants."""

    def __init__(self, encoder: DCAE, decoder: DCAE) -> None:
        self._encoder, self._decoder = encoder, decoder
        self.name, self.device, self.dtype = encoder.name, encoder.device, decoder.dtype
        self.spatial_compression_ratio = encoder.spatial_compression_ratio
        self.latent_channels = encoder.latent_channels

    def encode(self, pixels: Tensor) -> Tensor:
        return self._encoder.encode(pixels).to(self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        return self._decoder.decode(latents)
