"""The encoder short of memory, on a device that fails, and under whatever the caller has set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from dcae_cache.compute.idle import IdleClock
from dcae_cache.errors import ModelError, NoMemoryError
from dcae_cache.models.dcae import DCAE
from dcae_cache.models.latent_encoder import EncodedBatch, LatentEncoder
from helpers.devices import StandIn, on_late_device, random_images, short_of_memory

IMAGES = random_images(8)
DRESSES = [
    "GET was unable to find an engine to execute this computation",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: out of memory",
    "MPS backend out of memory (MPS allocated: 17.60 GB, max allowed: 18.13 GB)",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes",
]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def encode(autoencoder: StandIn, count: int = 8, **settings: object) -> tuple[EncodedBatch, list[str]]:
    said: list[str] = []
    with LatentEncoder(autoencoder, "fp32", 1.0, False, **settings) as encoder:  # type: ignore[arg-type]
        encoder.notify = said.append
        return encoder.encode(IMAGES[:count]), said


@pytest.mark.parametrize("text", DRESSES)
def test_memory_that_ran_out_in_any_dress_halves_the_batch(text: str) -> None:
    autoencoder = StandIn(fits=lambda pixels: len(pixels) <= 2, error=lambda: RuntimeError(text))
    batch, said = encode(autoencoder)
    assert autoencoder.given == [8, 4, 2, 2, 2, 2]
    assert torch.equal(batch.latents, encode(StandIn())[0].latents)
    assert said == [f"cpu ran out of memory: images of 64x64 pixels now go {count} at once." for count in (4, 2)]


def big(pixels: Tensor) -> bool:
    """Whether an image of a batch is bright in its first pixel: the ones that don't fit, whatever is beside them."""
    return bool((pixels[:, 0, 0, 0] > 0).any())


def test_one_image_that_does_not_fit_is_marked_and_the_others_are_encoded() -> None:
    batch, said = encode(StandIn(fits=lambda pixels: not big(pixels)))
    bright = [bool(image[0, 0, 0] > 127) for image in IMAGES]
    assert any(bright)
    assert not all(bright)
    assert list(batch.faults) == ["no_memory" if one else None for one in bright]
    right = encode(StandIn())[0].latents
    assert all(torch.equal(batch.latents[i], right[i]) for i in range(8) if not bright[i])
    told = [text for text in said if "no memory for one image of 64x64 pixels" in text]
    assert len(told) == 1, "once for a size"


def test_no_memory_for_a_small_image_either_is_an_error() -> None:
    """Another program holds the card: not the image's fault, and every other image would be skipped, too."""
    with pytest.raises(NoMemoryError, match="no memory to encode one image of 64x64 pixels, nor a small one"):
        encode(StandIn(fits=lambda pixels: False))


def test_encoding_again_takes_only_the_images_that_need_it_and_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = StandIn(overflows=lambda pixels: slice(0, 6, 2))
    again = autoencoder.in_fp32(monkeypatch)
    again.fits = lambda pixels: len(pixels) <= 1
    batch, said = encode(autoencoder)
    assert (autoencoder.given, again.given) == ([8], [3, 1, 1, 1])
    assert list(batch.redone) == [0, 2, 4]
    assert list(batch.faults) == [None] * 8
    half, full = encode(StandIn())[0].latents, encode(StandIn(torch.float32))[0].latents
    for i in range(8):
        assert torch.equal(batch.latents[i], (full if i in batch.redone else half)[i])
    assert said == ["cpu ran out of memory: images of 64x64 pixels encoded again in fp32 now go 1 at once."]


def test_an_image_that_fits_in_half_precision_only_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = StandIn(overflows=lambda pixels: slice(0, 1))
    autoencoder.in_fp32(monkeypatch).fits = lambda pixels: (
        pixels.abs().max() == 1 and pixels.std() == 0
    )  # the small one
    assert list(encode(autoencoder)[0].faults) == ["no_memory"] + [None] * 7


def overflow_in_half(patch: pytest.MonkeyPatch) -> None:
    real = DCAE.encode

    def encode(self: DCAE, pixels: Tensor) -> Tensor:
        latents = real(self, pixels).clone()
        if self.dtype != torch.float32:
            latents[:2] = float("inf")
        return latents

    patch.setattr(DCAE, "encode", encode)


def test_what_is_encoded_again_is_the_same_bytes_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    overflow_in_half(monkeypatch)
    autoencoder = DCAE("f32c32-tiny", "cpu", torch.bfloat16, with_decoder=False)
    images, digests, before = random_images(3, 128, 128), set(), torch.get_num_threads()
    threads: set[int] = set()
    kept = LatentEncoder._encode

    def noted(self: LatentEncoder, autoencoder: DCAE, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        threads.add(torch.get_num_threads())
        return kept(self, autoencoder, pixels)

    monkeypatch.setattr(LatentEncoder, "_encode", noted)
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            with LatentEncoder(autoencoder, "fp32", 1.0, False) as encoder:
                batch = encoder.encode(images)
            assert list(batch.redone) == [0, 1]
            digests.add(hashlib.sha256(batch.latents.numpy().tobytes()).hexdigest())
    finally:
        torch.set_num_threads(before)
    assert (len(digests), threads) == (1, {1})


@pytest.mark.parametrize("text", ["uncorrectable ECC error encountered", "an illegal memory access was encountered"])
@pytest.mark.parametrize("late", [False, True])
def test_a_device_that_fails_is_an_error_of_ours(text: str, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As work is queued, or, as CUDA has it, when it is waited for."""
    if late:
        device = on_late_device(monkeypatch)

        def fail(mark: int) -> None:
            raise RuntimeError(f"CUDA error: {text}\nCUDA kernel errors might be asynchronously reported")

        monkeypatch.setattr(device, "arrive", fail)
        autoencoder = StandIn()
    else:
        autoencoder = StandIn(fits=lambda pixels: False, error=lambda: RuntimeError(f"CUDA error: {text}"))
    with pytest.raises(ModelError, match=f"^cpu failed while encoding: CUDA error: {text}. What was finished is kept"):
        encode(autoencoder)


def test_elsewhere_than_on_a_cpu_remainders_come_in_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    on_late_device(monkeypatch)
    autoencoder, found = StandIn(), {}
    with LatentEncoder(autoencoder, "fp32", 1.0, True, batch_size=lambda bucket: 6) as encoder:
        for count in range(1, 9):
            found[count] = encoder.encode(IMAGES[:count])
    assert autoencoder.given[::2] == [1, 2, 4, 4, 6, 6, 6, 1, 6, 2]
    for count, batch in found.items():
        assert len(batch.latents) == len(batch.faults) == count
        assert torch.equal(batch.latents, found[8].latents[:count])
        assert batch.mirrored is not None
        assert found[8].mirrored is not None
        assert torch.equal(batch.mirrored, found[8].mirrored[:count])


def test_on_a_cpu_batches_are_encoded_as_they_are() -> None:
    autoencoder = StandIn()
    with LatentEncoder(autoencoder, "fp32", 1.0, False, batch_size=lambda bucket: 4) as encoder:
        for count in (1, 3, 5, 7):
            encoder.encode(IMAGES[:count])
    assert autoencoder.given == [1, 3, 5, 7]


class Moment:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def wait(self) -> None: ...

    def seconds_since(self, earlier: Moment) -> float:  # type: ignore[override]
        return self.seconds - earlier.seconds


def test_a_device_s_idle_time_is_that_between_pieces_of_work() -> None:
    clock = IdleClock()
    for begin, end in ((1.0, 2.0), (2.0, 3.5), (5.0, 6.0)):
        clock.add(Moment(begin), Moment(end))
    assert (clock.busy_seconds, clock.idle_seconds) == (3.5, 1.5)
    clock.add(Moment(0.0), Moment(4.0), lane=1)
    assert (clock.busy_seconds, clock.idle_seconds) == (7.5, 1.5)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CALLERS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "nothing": nullcontext,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.bfloat16),
}


@pytest.fixture(scope="module")
def undisturbed() -> Tensor:
    with LatentEncoder(DCAE("f32c32-tiny", "cpu", with_decoder=False), "fp32", 1.0, True) as encoder:
        return encoder.encode(IMAGES).latents


@pytest.mark.parametrize("name", CALLERS)
def test_what_the_caller_has_set_changes_no_byte(
    undisturbed: Tensor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """On the calling thread, as on CUDA, from the reading of the weights on."""
    on_late_device(monkeypatch)
    with CALLERS[name]():
        autoencoder = DCAE("f32c32-tiny", "cpu", with_decoder=False)
        with LatentEncoder(autoencoder, "fp32", 1.0, True, batch_size=lambda bucket: 8) as encoder:
            batch = encoder.encode(IMAGES)
    assert torch.equal(batch.latents, undisturbed)
    assert not batch.latents.is_inference()
    assert not batch.latents.requires_grad


@pytest.mark.parametrize("name", CALLERS)
def test_nor_does_it_where_pixels_go_there_and_back(name: str) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    right = DCAE("f32c32-tiny", "cpu")
    latents = right.encode(pixels)
    with CALLERS[name]():
        ours = DCAE("f32c32-tiny", "cpu")
        assert torch.equal(ours.encode(pixels), latents)
        assert torch.equal(ours.decode(latents), right.decode(latents))


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("name", [*CALLERS, "cuda autocast", "side stream", "cuda by default", "tf32", "benchmark"])
def test_what_the_caller_has_set_changes_no_byte_on_cuda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = CALLERS | {
        "cuda autocast": lambda: torch.autocast("cuda", dtype=torch.bfloat16),
        "side stream": lambda: torch.cuda.stream(torch.cuda.Stream()),
        "cuda by default": lambda: torch.device("cuda"),
        "tf32": lambda: monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True) or nullcontext(),
        "benchmark": lambda: monkeypatch.setattr(torch.backends.cudnn, "benchmark", True) or nullcontext(),
    }

    def latents() -> Tensor:
        autoencoder = DCAE("f32c32-tiny", "cuda", with_decoder=False)
        with LatentEncoder(autoencoder, "fp32", 1.0, False) as encoder:
            return encoder.encode(IMAGES).latents

    right = latents()
    with callers[name]():
        assert torch.equal(latents(), right)


@pytest.mark.gpu
@CUDA
def test_a_batch_is_halved_on_cuda_and_no_single_image_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a limit on the process's own memory, as a smaller card would set it."""
    autoencoder = DCAE("f32c32-tiny", "cuda", with_decoder=False)
    images = random_images(32, 512, 512)
    with LatentEncoder(autoencoder, "fp32", 1.0, False, batch_size=lambda bucket: 32) as encoder:
        right = encoder.encode(images).latents
    torch.cuda.empty_cache()
    said: list[str] = []
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**28) / total)
    try:
        with LatentEncoder(autoencoder, "fp32", 1.0, False, batch_size=lambda bucket: 32) as encoder:
            encoder.notify = said.append
            batch = encoder.encode(images)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said
    assert list(batch.faults) == [None] * 32
    assert torch.allclose(batch.latents, right, atol=1e-4)


@pytest.mark.gpu
@CUDA
def test_what_overflowed_is_encoded_again_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    overflow_in_half(monkeypatch)
    short_of_memory(monkeypatch, lambda autoencoder, pixels: autoencoder.dtype == torch.float16 or len(pixels) == 1)
    autoencoder = DCAE("f32c32-tiny", "cuda", torch.float16, with_decoder=False)
    with LatentEncoder(autoencoder, "fp32", 1.0, True) as encoder:
        batch = encoder.encode(IMAGES)
    exact = DCAE("f32c32-tiny", "cuda", torch.float32, with_decoder=False)
    with LatentEncoder(exact, "fp32", 1.0, True) as encoder:
        right = encoder.encode(IMAGES)
    assert list(batch.redone) == [0, 1]
    assert torch.allclose(batch.latents[:2], right.latents[:2], atol=1e-4)
