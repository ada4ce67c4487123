"""An autoencoder of diffusers' behind the two calls of ours, ``encode`` and ``decode``, so that both run alike.

The only file that imports diffusers. It is given a folder and a class name; it knows no hub and no table of models.

Range: every image autoencoder of diffusers takes and gives pixels in [-1, 1]. AutoencoderTiny too: its networks work
in [0, 1], and its encoder and decoder convert at their ends. Latents are raw, as ``encode`` gives them and ``decode``
takes them: no scaling factor and, for AutoencoderTiny, no 8-bit rounding (only its ``forward`` does that).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..compute.exact import exact_math
from ..compute.memory import is_out_of_memory
from ..errors import CheckpointError, MissingExtraError, NoMemoryError, one_line
from .diffusers_zoo import OtherCheckpoint

SEED = 0  # of the noise that a ConsistencyDecoderVAE starts from: the same for every image
_PROBE = 64  # side of the image that shows what a model's factor and channels are; a second try is twice as large


class DiffusersAutoencoder:
    """A diffusers autoencoder with its weights, in one dtype on one device.

    ``spatial_compression_ratio`` and ``latent_channels`` are measured on a small black image, not read from the
    config, whose fields differ from class to class. Raises MissingExtraError without diffusers, CheckpointError where
    the class or the files aren't an image autoencoder.
    """

    def __init__(self, checkpoint: OtherCheckpoint, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self._network = _load(checkpoint, name).to(device, dtype)
        self._seeded = checkpoint.class_name == "ConsistencyDecoderVAE"
        self.needs_float32 = bool(self._network.config.get("force_upcast", False))
        self.spatial_compression_ratio, self.latent_channels = self._probe(checkpoint.class_name)

    @property
    def num_weight_bytes(self) -> int:
        """Memory that the weights take."""
        tensors = [*self._network.parameters(), *self._network.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] in [-1, 1] to raw latents [N, c, H/f, W/f]: a posterior's mode, never a sample of it."""
        with exact_math(self.device):
            encoded = self._network.encode(pixels.to(self.device, self.dtype))
        if hasattr(encoded, "latent_dist"):
            latents: Tensor = encoded.latent_dist.mode()
        else:
            latents = encoded.latent if hasattr(encoded, "latent") else encoded.latents
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [N, c, h, w] to pixels [N, 3, h*f, w*f] around [-1, 1], not clamped.

        A decoder that starts from noise gets the same noise for each image, whatever batch the image is in.
        """
        arguments: dict[str, Any] = {}
        if self._seeded:
            # made on the CPU, so that it does not depend on the device either
            arguments["generator"] = [torch.Generator().manual_seed(SEED) for _ in range(len(latents))]
        with exact_math(self.device):
            pixels: Tensor = self._network.decode(latents.to(self.device, self.dtype), **arguments).sample
        return pixels

    def _probe(self, class_name: str) -> tuple[int, int]:
        """The factor and the latent channels, from a black image there and back."""
        reason = ""
        for side in (_PROBE, 2 * _PROBE):
            black = torch.full((1, 3, side, side), -1.0)
            try:
                latents = self.encode(black)
                pixels = self.decode(latents)
            except Exception as error:  # whatever a class meant for other data makes of an image
                if not is_out_of_memory(error):
                    reason = one_line(error, 150)
                    continue
                raise NoMemoryError(
                    f"{self.name}: {self.device} has no memory for it; choose another `device`"
                ) from error
            if latents.dim() == 4 and latents.shape[2] == latents.shape[3] and pixels.shape == black.shape:
                return side // latents.shape[2], latents.shape[1]
            reason = f"latents are of shape {list(latents.shape)}, reconstructions of {list(pixels.shape)}"
        raise CheckpointError(
            f"{self.name}: {class_name} does not reconstruct RGB images of {2 * _PROBE}x{2 * _PROBE} pixels "
            f"({reason}); only image autoencoders can be compared"
        )


def _load(checkpoint: OtherCheckpoint, name: str) -> Any:
    """The network with all of its weights, in evaluation mode, on the CPU."""
    found = _class(checkpoint.class_name, name)
    try:
        network, info = found.from_pretrained(
            str(checkpoint.folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers raises anything from KeyError to its own over files that don't fit
        raise CheckpointError(
            f"{name}: diffusers can't load {checkpoint.folder} as {checkpoint.class_name}: {one_line(error)}"
        ) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(what):
            listed = ", ".join(map(str, list(info[what])[:3]))
            raise CheckpointError(
                f"{name}: the weights in {checkpoint.folder} don't fit {checkpoint.class_name} as its config.json "
                f"describes it; {what.replace('_', ' ')}: {listed}; download them again"
            )
    return network.eval().requires_grad_(False)


def _class(class_name: str, name: str) -> Any:
    """The class of that name in diffusers, if it encodes and decodes."""
    try:
        import diffusers
        from diffusers.utils import logging
    except ImportError as error:
        raise MissingExtraError(
            f"{name} runs through diffusers, which can't be imported ({one_line(error, 100)}): "
            "pip install 'dcae-cache[compare]'"
        ) from error
    logging.set_verbosity_error()  # what matters of its messages becomes an error here
    logging.disable_progress_bar()
    found = getattr(diffusers, class_name, None)
    if found is None:
        raise CheckpointError(
            f"{name}: diffusers {diffusers.__version__} has no {class_name}, which config.json names; "
            "a newer diffusers may: pip install -U diffusers"
        )
    if not (inspect.isclass(found) and issubclass(found, torch.nn.Module) and hasattr(found, "encode")):
        raise CheckpointError(f"{name}: {class_name} of diffusers is no autoencoder; give the folder or repo of one")
    return found
