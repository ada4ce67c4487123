"""Nothing is read before it has arrived, on a device whose copies to the host finish late."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dcae_cache.compute.graphs import Work
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.models.dcae import DCAE
from dcae_cache.models.latent_encoder import EncodedBatch, LatentEncoder, PendingBatch
from dcae_cache.reader.dataset import LatentDataset
from helpers.devices import (
    Order,
    ReplayedWork,
    StandIn,
    chunks,
    on_late_device,
    random_images,
    short_of_memory,
    with_graphs,
)
from helpers.images import make_folder, tiny_config

ORDERS: tuple[Order, ...] = ("oldest first", "newest first", "only what is waited for")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
IMAGES = random_images(20)


def results_of(pending: list[PendingBatch], backwards: bool) -> list[EncodedBatch]:
    """The batches' results in order, asked for in order or the last one first."""
    if not backwards:
        return [one.result() for one in pending]
    return [one.result() for one in reversed(pending)][::-1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("limit", [99, 4, 1], ids=["fits", "halved", "halved thrice"])
def test_every_row_is_its_image_s(
    monkeypatch: pytest.MonkeyPatch, order: Order, backwards: bool, flip: bool, limit: int
) -> None:
    on_late_device(monkeypatch, order)
    autoencoder = StandIn(fits=lambda pixels: len(pixels) <= limit)
    results: list[EncodedBatch] = []
    pending: list[PendingBatch] = []
    with LatentEncoder(autoencoder, "fp32", 1.0, flip, batch_size=lambda bucket: 8) as encoder:
        for batch in chunks(IMAGES, 8):  # two under way at once, as in a run
            pending.append(encoder.launch(batch))
            if len(pending) == 2:
                results += results_of(pending, backwards)
                pending.clear()
        results += results_of(pending, backwards)
    check(results, expected(torch.float16), flip)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("limit", [99, 4])
def test_recorded_work_gives_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, order: Order, backwards: bool, flip: bool, limit: int
) -> None:
    """A replay writes over the results of the one before, whose copies may not have been waited for."""
    on_late_device(monkeypatch, order)
    recorded: list[tuple[int, ...]] = []

    def record(work: Work, given: Tensor) -> ReplayedWork:
        recorded.append(tuple(given.shape))
        return ReplayedWork(work, given)

    with_graphs(monkeypatch, record)
    autoencoder = StandIn(fits=lambda pixels: len(pixels) <= limit)
    autoencoder.kernels = "triton"
    with LatentEncoder(autoencoder, "fp32", 1.0, flip, batch_size=lambda bucket: 4) as encoder:
        for _ in range(2):
            pending = [encoder.launch(batch) for batch in chunks(IMAGES, 8)]
            check(results_of(pending, backwards), expected(torch.float16), flip)
    assert recorded == [(4, 3, 64, 64)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("limit", [99, 1])
def test_images_encoded_again_in_fp32_have_arrived_too(
    monkeypatch: pytest.MonkeyPatch, order: Order, flip: bool, limit: int
) -> None:
    """Also while the batch after them is under way, and where fp32 does not fit."""
    on_late_device(monkeypatch, order)
    autoencoder = StandIn(overflows=lambda pixels: slice(0, len(pixels), 3))
    autoencoder.in_fp32(monkeypatch).fits = lambda pixels: len(pixels) <= limit
    with LatentEncoder(autoencoder, "fp32", 1.0, flip, batch_size=lambda bucket: 8) as encoder:
        pending = [encoder.launch(batch) for batch in chunks(IMAGES, 8)]
        results = [one.result() for one in pending]
    assert [list(result.redone) for result in results] == [[0, 3, 6], [0, 3, 6], [0, 3]]
    half, full = expected(torch.float16), expected(torch.float32)
    check(results, [(full if number % 8 % 3 == 0 else half)[number] for number in range(len(IMAGES))], flip)


def test_a_whole_run_halves_and_stores_the_right_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_folder(tmp_path / "photos", 16)
    options = RunOptions(device="cpu", workers=1, part_size=16, batch_size=4)
    encode_dataset(photos, tmp_path / "expected", tiny_config(flip=True), options)
    on_late_device(monkeypatch)
    short_of_memory(monkeypatch, lambda autoencoder, pixels: len(pixels) <= 2)
    encode_dataset(photos, tmp_path / "found", tiny_config(flip=True), options)
    for flipped in (False, True):
        found, right = (LatentDataset(tmp_path / name, columns=(), flipped=flipped) for name in ("found", "expected"))
        wrong = [i for i in range(16) if not torch.allclose(found.latents(i), right.latents(i), atol=1e-4)]
        assert not wrong, f"{len(wrong)} of 16 rows are not their image's"


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("limit", [99, 4, 1])
def test_every_row_is_its_image_s_on_cuda(monkeypatch: pytest.MonkeyPatch, flip: bool, limit: int) -> None:
    autoencoder = DCAE("f32c32-tiny", "cuda", torch.float32, with_decoder=False)
    with LatentEncoder(autoencoder, "fp32", 1.0, True) as encoder:
        alone = [encoder.encode([image]) for image in IMAGES]
    right = [(one.latents[0], one.mirrored[0]) for one in alone if one.mirrored is not None]
    short_of_memory(monkeypatch, lambda autoencoder, pixels: len(pixels) <= limit)
    with LatentEncoder(autoencoder, "fp32", 1.0, flip, batch_size=lambda bucket: 8) as encoder:
        pending = [encoder.launch(batch) for batch in chunks(IMAGES, 8)]
        check([one.result() for one in pending], right, flip, atol=1e-4)


def expected(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """What the stand-in makes of each image, plain and mirrored, one at a time, where copies are done at once."""
    autoencoder, pairs = StandIn(dtype), []
    for image in IMAGES:
        unit = torch.from_numpy(image).permute(2, 0, 1)[None].float().div(127.5).sub(1.0).to(dtype)
        pairs.append((autoencoder.encode(unit)[0].float(), autoencoder.encode(unit.flip(3))[0].float()))
    return pairs


def check(results: list[EncodedBatch], right: list[tuple[Tensor, Tensor]], flip: bool, atol: float = 0.0) -> None:
    """Every row is the image's of that number, and none is marked."""
    found = torch.cat([result.latents for result in results])
    pairs = [(found, torch.stack([plain for plain, _ in right]))]
    if flip:
        mirrored = torch.cat([result.mirrored for result in results if result.mirrored is not None])
        pairs.append((mirrored, torch.stack([other for _, other in right])))
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        wrong = [i for i in range(len(ours)) if not torch.allclose(ours[i], theirs[i], rtol=0, atol=atol)]
        assert not wrong, f"{len(wrong)} of {len(ours)} rows are not their image's: {wrong}"
    assert all(fault is None for result in results for fault in result.faults)
    assert all((result.mirrored is not None) == flip for result in results)
