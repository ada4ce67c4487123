"""Images are put together for the device by the thread that loads, in one copy, and judged on the device."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.encode.reuse import prepare_fresh
from dcae_cache.errors import ModelError
from dcae_cache.loading.batches import Batch, PartInProgress
from dcae_cache.models import latent_pieces
from dcae_cache.models.latent_encoder import LatentEncoder
from dcae_cache.models.latent_pieces import join, padded, sent
from dcae_cache.records import Bucket, Part, StoredAt
from helpers.devices import LateTransfers, StandIn, random_images
from helpers.images import tiny_config

IMAGES = random_images(5, 64, 96)


def test_prepared_images_are_one_block_of_memory_as_they_lie_in_files() -> None:
    with LatentEncoder(StandIn(), "fp32", 1.0, False) as encoder:
        pixels = encoder.prepare(IMAGES)
        assert pixels.shape == (5, 3, 64, 96)
        assert pixels.permute(0, 2, 3, 1).is_contiguous()
        assert all(np.array_equal(pixels[i].permute(1, 2, 0).numpy(), IMAGES[i]) for i in range(5))
        ready, loose = encoder.launch(pixels).result(), encoder.launch(IMAGES).result()
    assert torch.equal(ready.latents, loose.latents)
    assert ready.magnitudes == loose.magnitudes


def test_a_run_prepares_on_the_loading_thread(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, set[str]] = {"prepare": set(), "launch": set()}
    for name in threads:
        real = getattr(LatentEncoder, name)

        def noted(self: LatentEncoder, given: Any, name: str = name, real: Any = real) -> Any:
            threads[name].add(threading.current_thread().name)
            assert name == "prepare" or isinstance(given, Tensor)
            return real(self, given)

        monkeypatch.setattr(LatentEncoder, name, noted)
    options = RunOptions(device="cpu", workers=1, limit=6, batch_size=2)
    assert encode_dataset(photos, tmp_path / "out", tiny_config(), options).encoded == 6
    assert threads == {"prepare": {"prefetch"}, "launch": {threading.main_thread().name}}


def test_a_batch_lets_go_of_pixels_that_were_prepared() -> None:
    """Else they would be in memory twice while they wait for the device."""
    stored = StoredAt("part-000000", 3, False)
    batch = Batch(PartInProgress(Part("part-000001", ())), Bucket(64, 96), [0, 1, 2], [IMAGES[0], stored, IMAGES[1]])
    prepared = prepare_fresh(batch, list)
    assert prepared is not None
    assert [image.shape for image in prepared] == [(64, 96, 3)] * 2
    assert batch.images[1] is stored
    assert sum(image.nbytes for image in batch.images if isinstance(image, np.ndarray)) == 0
    assert len(batch.images) == 3
    assert prepare_fresh(Batch(batch.part, batch.bucket, [0], [stored]), list) is None


def test_a_device_that_fails_while_images_are_prepared_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with LatentEncoder(StandIn(), "fp32", 1.0, False) as encoder:

        def fail(*_: object) -> Tensor:
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

        monkeypatch.setattr(encoder._transfers, "host_memory", fail)
        with pytest.raises(ModelError, match="failed while encoding: CUDA error: uncorrectable ECC"):
            encoder.launch(IMAGES)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -70000.0])
@pytest.mark.parametrize("where", ["latents", "mirrored"])
def test_the_host_judges_by_one_number_an_image(bad: float, where: str) -> None:
    """Nothing of the host reads the latents themselves: they have not arrived when the numbers are made."""
    device = LateTransfers("only what is waited for")
    given = {"latents": torch.full((4, 3, 2, 2), 0.5), "mirrored": torch.full((4, 3, 2, 2), -0.75)}
    given[where][2, 1, 0, 1] = bad
    piece = sent(device, given["latents"], given["mirrored"], 3)
    device.mark().wait()
    _, _, magnitudes = join([piece])
    assert magnitudes[:2] == [0.75, 0.75]
    assert len(magnitudes) == 3
    assert magnitudes[2] == pytest.approx(abs(bad), nan_ok=True)


def test_what_pads_a_batch_is_a_copy_of_its_last_image() -> None:
    pixels = torch.arange(3)[:, None, None, None].expand(3, 3, 2, 2)
    assert padded(pixels, 5)[:, 0, 0, 0].tolist() == [0, 1, 2, 2, 2]
    assert padded(pixels, 2) is pixels
    assert latent_pieces.without_memory((3, 2, 2), torch.float16, True).mirrored is not None
