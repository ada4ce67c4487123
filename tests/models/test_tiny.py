"""f32c32-tiny, the model in the package: intact, honest about its scale, and good enough to show pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dcae_cache import DCAE
from dcae_cache.compute.ranges import to_uint8
from dcae_cache.files import sha256_of_file
from dcae_cache.metrics.image_scores import score
from dcae_cache.models import zoo

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
WEIGHTS = zoo.TINY_FOLDER / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tiny() -> DCAE:
    return DCAE("f32c32-tiny", device="cpu")


def photo(name: str, side: int = 256) -> torch.Tensor:
    """A shipped photo, its middle square resized: uint8 [3, side, side]."""
    image = Image.open(PHOTOS / name).convert("RGB")
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    image = image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def unit(image: torch.Tensor) -> torch.Tensor:
    return image[None].float() / 127.5 - 1


def test_the_file_is_the_one_in_the_table() -> None:
    assert sha256_of_file(WEIGHTS) == zoo.get("f32c32-tiny").file_sha256
    assert WEIGHTS.stat().st_size <= 16 * 2**20


def test_it_is_a_small_f32c32(tiny: DCAE) -> None:
    assert (tiny.spatial_compression_ratio, tiny.latent_channels) == (32, 32)
    with safe_open(WEIGHTS, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - not a dict
    assert sum(math.prod(shape) for shape in shapes) <= 8_000_000


def test_scaled_latents_of_photos_are_near_unit_variance(tiny: DCAE) -> None:
    assert tiny.scaling_factor is not None
    latents = torch.cat([tiny.encode(unit(photo(path.name))) for path in sorted(PHOTOS.glob("*.jpg"))])
    assert 0.5 < (latents * tiny.scaling_factor).std().item() < 2.0


@pytest.mark.parametrize(
    ("name", "psnr"), [("astronaut.jpg", 19.0), ("chelsea.jpg", 24.0), ("coffee.jpg", 20.0), ("rocket.jpg", 22.0)]
)
def test_photos_come_back_recognisably(tiny: DCAE, name: str, psnr: float) -> None:
    image = photo(name)
    decoded = to_uint8(tiny.decode(tiny.encode(unit(image))))[0]
    assert score(decoded, image).psnr > psnr
    drift = (decoded.float() - image.float()).mean(dim=(1, 2)).abs()
    assert drift.max() < 3, f"the mean colour moved by {drift.tolist()}"


def test_flat_and_noise_images_stay_finite(tiny: DCAE) -> None:
    noise = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for value in (0, 128, 255):
        flat = torch.full((3, 128, 128), value, dtype=torch.uint8)
        latents = tiny.encode(unit(flat))
        assert torch.isfinite(latents).all()
        assert score(to_uint8(tiny.decode(latents))[0], flat).psnr > 25
    latents = tiny.encode(unit(noise))
    assert torch.isfinite(latents).all()
    assert torch.isfinite(tiny.decode(latents)).all()


def test_diffusers_reads_the_same_files() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderDC.from_pretrained(zoo.TINY_FOLDER, torch_dtype=torch.float32).eval()
    ours = DCAE("f32c32-tiny", device="cpu")
    pixels = unit(photo("astronaut.jpg"))
    with torch.no_grad():
        latents = theirs.encode(pixels).latent
        pixels_back = theirs.decode(latents).sample
    assert torch.allclose(ours.encode(pixels), latents, atol=1e-4)
    assert torch.allclose(ours.decode(latents), pixels_back, atol=1e-3)
    assert theirs.config.scaling_factor == ours.scaling_factor
