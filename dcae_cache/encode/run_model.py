"""The model of a run: found at once, read when it is needed, and identified for the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..cache.recipe import ModelIdentity
from ..compute.devices import TORCH_DTYPES
from ..config import EncodeConfig, RunOptions
from ..errors import ModelError, UsageError
from ..models.activations import automatic_batches
from ..models.dcae import DCAE
from ..models.folder import Checkpoint
from ..models.hub import resolve
from ..models.options import HubOptions
from ..models.preflight import open_checked
from ..models.weights import digest_of_half
from ..records import Bucket, DtypeName, Kernels


class RunModel:
    """The autoencoder of a run, found at once but read only when it is needed: a finished cache never needs it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: DtypeName,
        latent_channels: int | None = None,
        kernels: Kernels = "eager",
    ) -> None:
        self.checkpoint = checkpoint
        self.latent_channels = checkpoint.spec.channels(latent_channels)
        self.device = device
        self._dtype = TORCH_DTYPES[dtype]
        self._kernels = kernels
        self._autoencoder: DCAE | None = None

    def load(self) -> DCAE:
        """The encoder, on the device and in the compute dtype; read on the first call, and tried on a small image.

        Raises ModelError where the device can't compute it."""
        if self._autoencoder is None:
            open_one = partial(
                DCAE,
                self.checkpoint,
                self.device,
                self._dtype,
                with_decoder=False,
                latent_channels=self.latent_channels,
                kernels=self._kernels,
            )
            self._autoencoder = open_checked(open_one, self.device, self._dtype, "compute_dtype")
        return self._autoencoder

    @property
    def kernels(self) -> list[str]:
        """What computes the steps between convolutions, once it has been read: a name."""
        return [] if self._autoencoder is None else [self._autoencoder.kernels]

    @property
    def notes(self) -> list[str]:
        """Sentences for a person on how the model runs here, once it has been read."""
        return [] if self._autoencoder is None else self._autoencoder.notes

    def automatic_batches(self) -> Callable[[Bucket], int]:
        """How many images of each size go in an automatic batch, as far as the device's memory does not limit it."""
        return automatic_batches(self.device, self.checkpoint.spec, "encoder", self._dtype)

    def encoder_sha256(self) -> str:
        """Digest of the encoder's weights, read from the files: no network is built for it."""
        found = self.checkpoint
        return digest_of_half(found.weights, found.spec, found.layout, "encoder")


def find_model(config: EncodeConfig, options: RunOptions, device: torch.device) -> RunModel:
    """The model the recipe names, fetched but not read yet. Raises ModelError, and UsageError for settings that the
    model doesn't know."""
    hub = HubOptions(cache_dir=options.cache_dir, token=options.token, offline=options.offline)
    if config.subfolder is not None and "/" not in config.model and not Path(config.model).expanduser().is_dir():
        raise UsageError(
            f"`subfolder` is {config.subfolder!r}, but {config.model} is the name of one model: name a hub repo "
            "(owner/name) or a folder, or leave it out."
        )
    checkpoint = resolve(config.model_source, hub, revision=config.revision, variant=config.variant)
    dtype = config.compute_dtype or config.dtype
    return RunModel(checkpoint, device, dtype, config.latent_channels, options.kernels)


def identify(model: RunModel, config: EncodeConfig, known: Mapping[str, Any]) -> ModelIdentity:
    """The model as the recipe names it. Its weights are hashed unless ``known``, the recipe of the cache as it is, is
    of the very same commit of the same repo.

    Raises ModelError where no scaling factor is known: 1 is never assumed.
    """
    found = model.checkpoint
    scaling_factor = config.scaling_factor or found.scaling_factor
    if scaling_factor is None:
        raise ModelError(
            f"{found.name} publishes no scaling factor. Pass one with `scaling_factor`: 1 / std of its raw latents "
            "over your data."
        )
    same = found.revision is not None and (known.get("repo_id"), known.get("revision"), known.get("variant")) == (
        found.repo_id,
        found.revision,
        config.variant,
    )
    return ModelIdentity(
        name=found.name,
        repo_id=found.repo_id,
        revision=found.revision,
        weights_sha256=known["weights_sha256"] if same else model.encoder_sha256(),
        spatial_compression_ratio=found.spec.spatial_compression_ratio,
        latent_channels=model.latent_channels,
        scaling_factor=scaling_factor,
    )
