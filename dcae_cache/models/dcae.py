"""DCAE: a published (or shipped, or local) autoencoder as two calls, ``encode`` and ``decode``.

Pixels in [-1, 1] to raw latents and back, in one dtype, without autocast or TF32 whatever the caller has set. It
checks tensors and says what is wrong with them; it scales nothing: ``scaling_factor`` is there for whoever stores
latents.
"""

from __future__ import annotations

import math
import os
from typing import get_args

import torch
from torch import Tensor

from ..compute.devices import device_errors, require_device
from ..compute.exact import exact_math
from ..errors import TensorError, UsageError
from ..records import Kernels, UsedKernels
from .folder import Checkpoint
from .hub import resolve
from .kernel_choice import Choice, choose_steps
from .layouts import Half
from .network import memory_format
from .options import HubOptions
from .steps import Steps
from .weights import LoadedHalf, load_half

_HALVES: tuple[Half, ...] = ("encoder", "decoder")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class DCAE:
    """A DC-AE with its weights, for inference.

        ae = DCAE("f32c32-mix", device="cuda", dtype=torch.bfloat16)
        raw = ae.encode(pixels)     # [N, 3, H, W] in [-1, 1] -> [N, c, H/f, W/f]
        pixels = ae.decode(raw)     # and back, around [-1, 1]; stored latents first divided by ae.scaling_factor

    ``model``: a name that ``dcae-cache models`` lists, a hub repo (``owner/name``), a folder in either layout, or a
    Checkpoint found before. ``revision`` (branch, tag or commit), ``token``, ``cache_dir`` and ``offline`` (use only
    what was downloaded before) concern the hub.
    ``device`` defaults to CUDA where there is one, else the CPU; ``dtype`` to float32 (bfloat16 and float16 work too:
    the weights are cast to it). The encoder is read at once, the decoder on the first ``decode``, so that encoding
    never reads it; a half switched off by ``with_encoder`` or ``with_decoder`` is never read at all.
    ``scaling_factor`` overrides the model's; the attribute is None where none is published. ``latent_channels``: of
    DC-AE 1.5 models, so many of the first channels and no others. ``kernels``: "auto" takes Triton kernels on CUDA in
    half precision, where they run and agree with plain torch, which each half is tried for when it is read;
    the attribute ``kernels`` says what is used, ``notes`` what a person should know of that.

    Raises ModelError's subclasses when the model can't be had, UsageError when an argument makes no sense or a half
    that was switched off is asked for.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Checkpoint = "dc-ae-f32c32-mix-1.0",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        offline: bool = False,
        with_encoder: bool = True,
        with_decoder: bool = True,
        scaling_factor: float | None = None,
        latent_channels: int | None = None,
        kernels: Kernels = "eager",
    ) -> None:
        self.device = _device(device)
        self.dtype = torch.float32 if dtype is None else dtype
        if self.dtype not in _DTYPES:
            raise UsageError(f"dtype is {self.dtype}, expected one of {', '.join(map(str, _DTYPES))}")
        if not (with_encoder or with_decoder):
            raise UsageError("with_encoder and with_decoder are both False: nothing would be left to use")
        if scaling_factor is not None and not 0 < scaling_factor < math.inf:
            raise UsageError(f"scaling_factor is {scaling_factor}, expected a positive number")
        if kernels not in get_args(Kernels):
            raise UsageError(f"`kernels` is one of {', '.join(get_args(Kernels))}, not {kernels!r}.")
        hub = HubOptions(cache_dir=None if cache_dir is None else os.fspath(cache_dir), token=token, offline=offline)
        self.checkpoint = model if isinstance(model, Checkpoint) else resolve(model, hub, revision=revision)
        self.name = self.checkpoint.name
        self._latent_channels = self.checkpoint.spec.channels(latent_channels)
        self.scaling_factor = self.checkpoint.scaling_factor if scaling_factor is None else float(scaling_factor)
        self._allowed = {"encoder": with_encoder, "decoder": with_decoder}
        self._halves: dict[Half, LoadedHalf] = {}
        self._wanted_kernels, self._choices = kernels, dict[Half, Choice]()
        self._half("encoder" if with_encoder else "decoder")

    def __repr__(self) -> str:
        return f"DCAE({self.name!r}, device={str(self.device)!r}, dtype={self.dtype})"

    @property
    def spatial_compression_ratio(self) -> int:
        """f: a side in pixels over the same side in latent cells."""
        return self.checkpoint.spec.spatial_compression_ratio

    @property
    def latent_channels(self) -> int:
        """c: channels of a latent cell that ``encode`` gives."""
        return self._latent_channels

    @property
    def kernels(self) -> UsedKernels:
        """What computes the steps between convolutions, in all halves read so far."""
        return "triton" if all(choice.name == "triton" for choice in self._choices.values()) else "eager"

    @property
    def notes(self) -> list[str]:
        """Sentences for a person on how the halves read so far run here."""
        return list(dict.fromkeys(choice.note for choice in self._choices.values() if choice.note))

    @property
    def encoder_sha256(self) -> str:
        """Digest of the encoder's weights as stored (see ``weights.load_half``); the same for either layout."""
        return self._half("encoder").sha256

    @property
    def decoder_sha256(self) -> str:
        """Digest of the decoder's weights; reads them if no ``decode`` has yet."""
        return self._half("decoder").sha256

    @property
    def num_weight_bytes(self) -> int:
        """Memory that the weights of the halves in use take; reads a half that hasn't been needed yet."""
        networks = [self._half(half).network for half in _HALVES if self._allowed[half]]
        tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] in [-1, 1], any float dtype and device, to raw latents [N, c, H/f, W/f].

        The latents are of the autoencoder's dtype and on its device. Raises TensorError for a wrong rank, channel
        count, dtype or size.
        """
        _check_floating(pixels, "pixels", "uint8 images become pixels by `images.float() / 127.5 - 1`")
        _check_rank(pixels, "pixels", "[N, 3, H, W]")
        if pixels.shape[1] != 3:
            hint = "; move the last dimension to the second place" if pixels.shape[-1] == 3 else ""
            raise TensorError(f"pixels have {pixels.shape[1]} channels, expected 3 (RGB) as [N, 3, H, W]{hint}")
        self._check_size(pixels)
        encoder = self._half("encoder").network.encoder
        assert encoder is not None
        with exact_math(self.device):
            latents: Tensor = encoder(self._prepared(pixels))
            return latents[:, : self.latent_channels].contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Raw (unscaled) latents [N, c, h, w] to pixels [N, 3, h*f, w*f], around [-1, 1] and not clamped.

        DC-AE 1.5 models also take the first few latent channels alone. Raises TensorError for a wrong rank, channel
        count or dtype.
        """
        _check_floating(latents, "latents", "they come from `encode`, or from a cache as stored / scaling_factor")
        _check_rank(latents, "latents", "[N, c, h, w]")
        spec = self.checkpoint.spec
        channels, expected, subset = latents.shape[1], spec.latent_channels, spec.has_channel_subsets
        if channels != expected and not (subset and 0 < channels < expected):
            wanted = f"1 to {expected}" if subset else str(expected)
            raise TensorError(f"latents have {channels} channels, {self.name} expects {wanted}")
        decoder = self._half("decoder").network.decoder
        assert decoder is not None
        with exact_math(self.device):
            pixels: Tensor = decoder(self._prepared(latents))
            return pixels.contiguous()

    def _half(self, half: Half) -> LoadedHalf:
        if not self._allowed[half]:
            raise UsageError(f"this DCAE was made with with_{half}=False; make one with the {half}")
        if half not in self._halves:
            with exact_math(self.device):
                self._halves[half] = self._load(half)
        return self._halves[half]

    def _load(self, half: Half) -> LoadedHalf:
        checkpoint = self.checkpoint
        loaded = load_half(checkpoint.weights, checkpoint.spec, checkpoint.layout, half, self.dtype)
        with device_errors(self.device, f"loading {self.name}"):
            layout = memory_format(self.device, self.dtype)
            loaded.network.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
            if self.device.type == "cuda":  # the caller may encode in another stream than the weights were copied in
                torch.cuda.synchronize(self.device)
        with device_errors(self.device, f"trying {self.name}"):
            self._choices[half] = self._choose(loaded, half)
        loaded.network.use(self._choices[half].steps)
        return loaded

    def _choose(self, loaded: LoadedHalf, half: Half) -> Choice:
        channels = self.checkpoint.spec.latent_channels
        side = self.spatial_compression_ratio if half == "encoder" else 1
        shape = (1, 3 if half == "encoder" else channels, 2 * side, 3 * side)

        def run(steps: Steps) -> Tensor:
            sample = torch.arange(math.prod(shape), dtype=torch.float32, device="cpu").mul(0.7).sin().view(shape)
            loaded.network.use(steps)
            result: Tensor = getattr(loaded.network, half)(self._prepared(sample))
            return result

        return choose_steps(self._wanted_kernels, self.device, self.dtype, run)

    def _prepared(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype, memory_format=memory_format(self.device, self.dtype))

    def _check_size(self, pixels: Tensor) -> None:
        ratio = self.spatial_compression_ratio
        for side, size in zip(("height", "width"), pixels.shape[-2:], strict=True):
            if size % ratio or size == 0:
                below, above = size // ratio * ratio, (size // ratio + 1) * ratio
                nearest = f"{below} or {above}" if below else str(above)
                raise TensorError(
                    f"pixels have {side} {size}, which {self.name}'s factor {ratio} does not divide; "
                    f"the nearest sizes are {nearest}: crop, pad or resize"
                )


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:  # torch's own message lists every backend it was ever built for
        raise UsageError(f"`device` is {device!r}, expected one such as 'cpu', 'cuda' or 'cuda:1'") from error
    require_device(chosen)
    return chosen


def _check_floating(tensor: Tensor, what: str, hint: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TensorError(f"{what} are a {type(tensor).__name__}, expected a torch.Tensor")
    if not tensor.is_floating_point():
        raise TensorError(f"{what} are of dtype {tensor.dtype}, expected a float dtype; {hint}")


def _check_rank(tensor: Tensor, what: str, expected: str) -> None:
    if tensor.dim() != 4 or 0 in (tensor.shape[0], *tensor.shape[2:]):
        hint = "; add a batch dimension with [None]" if tensor.dim() == 3 else ""
        raise TensorError(f"{what} are of shape {list(tensor.shape)}, expected {expected}, none of them 0{hint}")
