"""Any autoencoder on the same uint8 pixels: open it by name, encode, decode, and measure what that takes.

    ae = open_autoencoder("taesd", torch.device("cuda"), torch.bfloat16, HubOptions())
    measured = measure(ae, images)          # images uint8 [N, 3, H, W]; measured.reconstruction the same

DC-AEs run through our own DCAE, all others through diffusers. Everything is deterministic: a KL autoencoder's latents
are its posterior's mode, a consistency decoder's noise has a fixed seed. Knows nothing of caches, files or scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..compute.devices import describe_device, device_errors
from ..compute.exact import exact_math
from ..compute.memory import is_out_of_memory
from ..compute.pieces import Pieces
from ..compute.ranges import to_uint8, to_unit
from ..errors import ModelError, NoMemoryError, TensorError, UnknownModelError
from . import diffusers_zoo as others
from . import zoo
from .dcae import DCAE
from .diffusers_autoencoder import DiffusersAutoencoder
from .folder import Checkpoint
from .hub import open_files, resolve
from .options import HubOptions
from .preflight import open_checked, require_dtype, there_and_back

BYTES_PER_NUMBER = 2  # latents are counted as bf16 or fp16, which is what caches store unless told otherwise


class Codec(Protocol):
    """What runs behind an Autoencoder: pixels around [-1, 1] to raw latents and back, in one dtype on one device."""

    name: str
    device: torch.device
    dtype: torch.dtype

    @property
    def spatial_compression_ratio(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    def encode(self, pixels: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


class Autoencoder:
    """An autoencoder as uint8 in, uint8 out. Batches that don't fit in memory go in smaller pieces.

    ``caution``: a sentence on a setting that may spoil its results, or None. ``bytes_per_number``: of its latents.
    """

    bytes_per_number = BYTES_PER_NUMBER

    def __init__(self, codec: Codec, num_weight_bytes: int, caution: str | None = None) -> None:
        self._codec = codec
        self.name, self.device, self.dtype = codec.name, codec.device, codec.dtype
        self.spatial_compression_ratio = codec.spatial_compression_ratio
        self.latent_channels = codec.latent_channels
        self.num_weight_bytes = num_weight_bytes
        self.caution = caution
        self._pieces = Pieces(codec.device)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latent of an image of that size."""
        ratio = self.spatial_compression_ratio
        return self.latent_channels, height // ratio, width // ratio

    def latent_bytes(self, height: int, width: int) -> int:
        """Bytes of the latent of an image of that size, at ``bytes_per_number``."""
        return math.prod(self.latent_shape(height, width)) * self.bytes_per_number

    def stored(self, keys: Sequence[str]) -> Tensor | None:
        """Raw latents [N, c, h, w] that are kept of these images, to be decoded in place of fresh ones; None: none."""
        return None

    def encode(self, images: Tensor) -> Tensor:
        """Images uint8 [N, 3, H, W] to raw latents [N, c, H/f, W/f] of the autoencoder's dtype, on its device.

        Raises TensorError for images of another kind or of sides that f does not divide, ModelError when not even one
        image fits in memory or the latents come out as NaN or Inf.
        """
        self._check(images)
        return self._in_pieces(self._encode, images, "encode")

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [N, c, h, w] to images uint8 [N, 3, h*f, w*f] on the CPU, rounded and clamped to [0, 255]."""
        return self._in_pieces(self._decode, latents, "decode")

    def _encode(self, images: Tensor) -> Tensor:
        return self._finite(self._codec.encode(to_unit(images.to(self.device))), "latents")

    def _decode(self, latents: Tensor) -> Tensor:
        return to_uint8(self._finite(self._codec.decode(latents), "reconstructions")).cpu()

    def _finite(self, tensor: Tensor, what: str) -> Tensor:
        if bool(tensor.isfinite().all()):
            return tensor
        advice = "`dtype` fp32" if self.dtype == torch.float16 else "another checkpoint: its weights may be damaged"
        raise ModelError(f"{self.name} gives {what} with NaN or Inf in {self.dtype}; try {advice}")

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or not len(images):
            raise TensorError(f"images are {images.dtype} {list(images.shape)}, expected uint8 [N, 3, H, W]")
        height, width = images.shape[2:]
        ratio = self.spatial_compression_ratio
        if height % ratio or width % ratio:
            raise TensorError(
                f"images are {height}x{width}, which {self.name}'s factor {ratio} does not divide; see crop_alike"
            )

    def _in_pieces(self, function: Callable[[Tensor], Tensor], batch: Tensor, what: str) -> Tensor:
        """Apply ``function`` in as few pieces as memory allows."""

        def misfit(rows: slice, reason: str) -> Tensor:
            size = "x".join(map(str, batch.shape[2:]))
            thing = f"image of {size} pixels" if what == "encode" else f"latent of {size} cells"
            raise NoMemoryError(
                f"{self.name}: {describe_device(self.device)} has no memory to {what} one {thing} ({reason}); choose "
                "smaller images, a half `dtype`, or another `device`"
            )

        def work(rows: slice, size: int) -> Tensor:
            return function(batch[rows])

        with exact_math(self.device), device_errors(self.device, f"running {self.name}"):
            pieces = self._pieces.run(len(batch), (what, batch.shape[1:]), work, misfit)
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def known_names() -> tuple[str, ...]:
    """Every short name that ``open_autoencoder`` takes: the DC-AEs, then the others."""
    return (*(entry.name for entry in zoo.entries()), *(entry.name for entry in others.entries()))


@dataclass(frozen=True, slots=True)
class Located:
    """An autoencoder whose files are at hand, none of its weights read yet.

    ``spatial_compression_ratio`` is None for a model that must be opened to know it.
    """

    name: str
    checkpoint: Checkpoint | others.OtherCheckpoint
    spatial_compression_ratio: int | None


def locate(name: str, hub: HubOptions | None = None) -> Located:
    """Find an autoencoder, and download what it lacks: a short name of ``known_names``, a hub repo, or a folder in
    diffusers or efficientvit layout.

    Raises ModelError's subclasses, one line each: UnknownModelError, CheckpointError (no config, no autoencoder, no
    safetensors), HubError (not there, gated, no network).
    """
    hub = hub or HubOptions()
    entry = others.find(name)
    if entry is None and zoo.find(name) is not None:
        return _locate_dcae(name, hub)
    try:
        files = open_files(name if entry is None else entry.repo_id, hub)
    except UnknownModelError as error:
        known = ", ".join(other.name for other in others.entries())
        raise UnknownModelError(f"{error}; beside them, to compare with: {known}") from error
    checkpoint = others.find_checkpoint(files)
    if checkpoint is None:
        return _locate_dcae(name, hub)
    if entry is None:
        return Located(_short(name), checkpoint, None)
    return Located(entry.name, checkpoint, entry.spatial_compression_ratio)


def _locate_dcae(name: str, hub: HubOptions) -> Located:
    checkpoint = resolve(name, hub)
    return Located(checkpoint.name, checkpoint, checkpoint.spec.spatial_compression_ratio)


def open_autoencoder(
    name: str | Located, device: torch.device, dtype: torch.dtype, hub: HubOptions | None = None
) -> Autoencoder:
    """Open an autoencoder by name, or one already located.

    Raises what ``locate`` does, and MissingExtraError without diffusers, where it needs that; CheckpointError for
    weights that don't fit; ModelError where there is no memory for it.
    """
    located = locate(name, hub) if isinstance(name, str) else name
    codec: DCAE | DiffusersAutoencoder
    caution = None
    try:
        if isinstance(located.checkpoint, Checkpoint):
            open_one = partial(DCAE, located.checkpoint, device, dtype)
            codec = open_checked(open_one, device, dtype, "dtype", there_and_back)
        else:
            require_dtype(device, dtype, "dtype")
            with device_errors(device, f"loading {located.name}"):
                codec = DiffusersAutoencoder(located.checkpoint, located.name, device, dtype)
            if codec.needs_float32 and dtype == torch.float16:
                caution = f"{located.name}: its config asks for fp32 (force_upcast); fp16 may overflow"
        return Autoencoder(codec, codec.num_weight_bytes, caution)
    except (RuntimeError, NoMemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NoMemoryError(
            f"{located.name}: {describe_device(device)} has no memory for its weights; choose another `device`"
        ) from error


def _short(name: str) -> str:
    """A folder's own name, or owner/name as it is."""
    return name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) or name.count("/") > 1 else name
