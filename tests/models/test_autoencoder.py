"""Any autoencoder on the same pixels: the same numbers as diffusers gives, measured, and every way it can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from dcae_cache.compare.measure import crop_alike, measure
from dcae_cache.compare.side_by_side import ImageBatch, Trial, compare_autoencoders
from dcae_cache.compute.ranges import to_uint8
from dcae_cache.errors import CheckpointError, HubError, MissingExtraError, ModelError, TensorError, UnknownModelError
from dcae_cache.metrics.image_scores import score
from dcae_cache.metrics.set_scores import SetScore
from dcae_cache.models import diffusers_zoo as others
from dcae_cache.models.autoencoder import BYTES_PER_NUMBER, Autoencoder, known_names, locate, open_autoencoder
from dcae_cache.models.dcae import DCAE
from dcae_cache.models.options import HubOptions
from helpers.images import make_image
from helpers.models_for_comparison import KINDS, save_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root, kind) for kind in KINDS}


def batch(height: int = 64, width: int = 96, count: int = 3) -> Tensor:
    pictures = np.stack([np.asarray(make_image(height, width, seed)) for seed in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def plain(folder: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and pixels as diffusers' own class gives them, called as its documentation says."""
    class_name = json.loads((folder / "config.json").read_text())["_class_name"]
    network = getattr(diffusers, class_name).from_pretrained(folder).eval()
    with torch.no_grad():
        encoded = network.encode(images.float() / 127.5 - 1)
        latents = encoded[0] if class_name in ("AutoencoderTiny", "AutoencoderDC") else encoded.latent_dist.mode()
        if class_name == "ConsistencyDecoderVAE":
            one = [network.decode(z[None], generator=torch.Generator().manual_seed(0)).sample for z in latents]
            return latents, torch.cat(one)
        return latents, network.decode(latents).sample


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_gives_what_diffusers_gives(models: dict[str, Path], kind: str) -> None:
    images = batch()
    latents, pixels = plain(models[kind], images)
    autoencoder = open_autoencoder(str(models[kind]), CPU, torch.float32)
    assert (autoencoder.spatial_compression_ratio, autoencoder.latent_channels) == KINDS[kind][2:]
    ours = autoencoder.encode(images)
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(autoencoder._codec.decode(latents), pixels, rtol=0, atol=1e-5)
    levels = (autoencoder.decode(ours).int() - to_uint8(pixels).int()).abs()
    assert int(levels.max()) <= 1  # where 1e-5 decides a rounding
    assert float(levels.float().mean()) < 1e-3
    assert float(pixels.std()) > 0.1  # or the above would prove little
    assert torch.equal(autoencoder.decode(autoencoder.encode(images)), autoencoder.decode(ours))  # it repeats


def test_dc_aes_run_through_our_own_class(models: dict[str, Path]) -> None:
    assert isinstance(open_autoencoder(str(models["dc"]), CPU, torch.float32)._codec, DCAE)
    autoencoder = open_autoencoder("f32c32-tiny", CPU, torch.float32)
    images = batch(64, 64, 2)
    ours = DCAE("f32c32-tiny", CPU)
    pixels = images.float() / 127.5 - 1
    assert torch.equal(measure(autoencoder, images).reconstruction, to_uint8(ours.decode(ours.encode(pixels))))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_batch(models: dict[str, Path], kind: str) -> None:
    autoencoder = open_autoencoder(str(models[kind]), CPU, torch.float32)
    images = batch()
    whole = autoencoder.decode(autoencoder.encode(images))
    alone = torch.cat([autoencoder.decode(autoencoder.encode(image[None])) for image in images])
    assert int((whole.int() - alone.int()).abs().max()) <= 1


def test_measurement_counts_sizes_time_and_memory(models: dict[str, Path]) -> None:
    autoencoder = open_autoencoder(str(models["kl"]), CPU, torch.float32)
    images = batch(64, 96)
    measured = measure(autoencoder, images)
    assert measured.latent_shape == autoencoder.latent_shape(64, 96) == (6, 16, 24)
    assert measured.latent_bytes == autoencoder.latent_bytes(64, 96) == 6 * 16 * 24 * BYTES_PER_NUMBER
    assert measured.compression_ratio == 3 * 64 * 96 / measured.latent_bytes
    assert 0 < measured.encode_seconds < 10
    assert 0 < measured.decode_seconds < 10
    if Path("/proc/self/statm").exists():
        assert measured.peak_bytes is not None
        assert measured.peak_bytes >= autoencoder.num_weight_bytes > 10_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_peak_memory_sees_what_is_gone_again() -> None:
    from dcae_cache.compute.memory import PeakMemory

    with PeakMemory(CPU) as peak:
        torch.ones(2**26, dtype=torch.uint8)
    assert peak.num_bytes is not None
    assert 2**26 * 0.9 < peak.num_bytes < 2**26 * 1.5


def test_all_models_get_the_same_crop() -> None:
    images = torch.arange(2 * 3 * 100 * 150).reshape(2, 3, 100, 150)
    cropped = crop_alike(images, [8, 32])
    assert cropped.shape == (2, 3, 96, 128)
    assert torch.equal(cropped, images[:, :, 2:98, 11:139])
    assert crop_alike(images, [20, 25]).shape[2:] == (100, 100)
    with pytest.raises(TensorError, match="smaller than 128x128"):
        crop_alike(images, [128, 8])


def test_wrong_images_are_refused(models: dict[str, Path]) -> None:
    autoencoder = open_autoencoder(str(models["kl"]), CPU, torch.float32)
    with pytest.raises(TensorError, match="66x96, which kl's factor 4 does not divide"):
        autoencoder.encode(batch(66, 96))
    with pytest.raises(TensorError, match="expected uint8"):
        autoencoder.encode(batch().float())
    with pytest.raises(TensorError, match="expected uint8"):
        autoencoder.encode(batch()[:, :2])


class Codec:
    """Halves sides, but has memory for ``most`` images only."""

    name, device, dtype = "scarce", CPU, torch.float16
    spatial_compression_ratio, latent_channels = 2, 3

    def __init__(self, most: int, error: RuntimeError, value: float = 0.0) -> None:
        self.most, self.error, self.value, self.sizes = most, error, value, []

    def encode(self, pixels: Tensor) -> Tensor:
        self.sizes.append(len(pixels))
        if len(pixels) > self.most:
            raise self.error
        return pixels[:, :, ::2, ::2] + self.value

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_batches_are_halved_where_memory_runs_out(error: RuntimeError) -> None:
    codec = Codec(2, error)
    autoencoder = Autoencoder(codec, 0)
    images = batch(8, 8, 5)
    reference = Autoencoder(Codec(99, error), 0)
    assert torch.equal(autoencoder.encode(images), reference.encode(images))
    assert codec.sizes == [5, 2, 2, 1]
    autoencoder.encode(images)
    assert codec.sizes[4:] == [2, 2, 1]  # it remembers
    with pytest.raises(ModelError, match="scarce: cpu has no memory to encode one image of 8x8 pixels"):
        Autoencoder(Codec(0, error), 0).encode(images)
    with pytest.raises(RuntimeError, match="a bug"):
        Autoencoder(Codec(0, RuntimeError("a bug")), 0).encode(images)


def test_overflow_is_said_not_scored() -> None:
    with pytest.raises(ModelError, match=r"scarce gives latents with NaN or Inf in torch.float16; try `dtype` fp32"):
        Autoencoder(Codec(9, RuntimeError(), float("inf")), 0).encode(batch(8, 8))


def test_caution_where_fp16_may_overflow(models: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((models["kl"] / "config.json").read_text())
    folder = copied(models["kl"], tmp_path / "sdxl", config | {"force_upcast": True})
    assert "fp16 may overflow" in (open_autoencoder(str(folder), CPU, torch.float16).caution or "")
    assert open_autoencoder(str(folder), CPU, torch.bfloat16).caution is None


def copied(source: Path, folder: Path, config: dict | None = None, weights: bool = True) -> Path:
    folder.mkdir(parents=True)
    name = "diffusion_pytorch_model.safetensors"
    if weights:
        (folder / name).write_bytes((source / name).read_bytes())
    text = (source / "config.json").read_text() if config is None else json.dumps(config)
    (folder / "config.json").write_text(text)
    return folder


def test_the_table_of_others() -> None:
    assert [entry.name for entry in others.entries()] == [
        "taesd",
        "taesdxl",
        "sdxl-vae-fp16-fix",
        "kl-f8-d16",
        "asymmetric-x-1-5",
        "consistency-decoder",
    ]
    assert others.find("MadeByOllin/TAESD") is others.find("taesd")
    assert {"f32c32-mix", "f32c32-tiny", "taesd"} <= set(known_names())
    for entry in others.entries():
        assert hasattr(diffusers, entry.class_name)


def test_a_pipeline_folder_is_entered(models: dict[str, Path], tmp_path: Path) -> None:
    copied(models["kl"], tmp_path / "vae")
    assert open_autoencoder(str(tmp_path), CPU, torch.float32).latent_channels == 6


def refused(kind: str, source: Path, folder: Path) -> None:
    """Make ``folder`` a model that can't be used, of that kind."""
    config = json.loads((source / "config.json").read_text())
    match kind:
        case "empty":
            folder.mkdir()
        case "unet":
            copied(source, folder, {"_class_name": "UNet2DConditionModel"})
        case "future":
            copied(source, folder, {"_class_name": "AutoencoderOfTheFuture"})
        case "nameless":
            copied(source, folder, {"latent_channels": 4})
        case "text":
            copied(source, folder)
            (folder / "config.json").write_text("<html>")
        case "pickle":
            copied(source, folder, weights=False)
            (folder / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
        case "no weights":
            copied(source, folder, weights=False)
        case "other widths":
            copied(source, folder, config | {"block_out_channels": [8, 8, 32]})
        case "more layers":
            copied(source, folder, config | {"layers_per_block": 2})
        case "damaged":
            copied(source, folder)
            (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100)
        case "video":
            network = diffusers.AutoencoderKLTemporalDecoder(
                block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), latent_channels=2
            )
            network.save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "has no config.json, at its top or in vae/"),
        ("unet", "is of a UNet2DConditionModel, which is no autoencoder"),
        ("future", "has no AutoencoderOfTheFuture"),
        ("nameless", "names no _class_name"),
        ("text", "is not JSON"),
        ("pickle", "only safetensors is read"),
        ("no weights", "has no diffusion_pytorch_model.safetensors"),
        ("other widths", "diffusers can't load"),
        ("more layers", "don't fit AutoencoderKL"),
        ("damaged", "diffusers can't load"),
        ("video", "only image autoencoders can be compared"),
    ],
)
def test_folders_that_are_no_usable_model(models: dict[str, Path], tmp_path: Path, kind: str, said: str) -> None:
    refused(kind, models["kl"], tmp_path / "model")
    with pytest.raises(CheckpointError) as raised:
        open_autoencoder(str(tmp_path / "model"), CPU, torch.float32)
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"taesdd.*to compare with: taesd, taesdxl"):
        locate("taesdd")
    with pytest.raises(CheckpointError, match="no such folder"):
        locate(str(tmp_path / "nowhere"))
    hub = HubOptions(cache_dir=str(tmp_path), offline=True)
    for name in ("taesd", "owner/name", "f32c32-mix"):
        with pytest.raises(HubError, match="offline mode allows no download"):
            locate(name, hub)


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    code = (
        "import time, sys; time.sleep = lambda seconds: None\n"
        "from dcae_cache.models.autoencoder import locate\n"
        "from dcae_cache.errors import HubError\n"
        "try: locate('taesd')\n"
        "except HubError as error: print(error)"
    )
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | settings
    )
    assert done.stdout.startswith("madebyollin/taesd: can't download config.json"), done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "check the network" in done.stdout


def test_without_diffusers_one_line_says_what_to_install(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dcae-cache\[compare\]'"):
        open_autoencoder(str(models["kl"]), CPU, torch.float32)
    assert open_autoencoder("f32c32-tiny", CPU, torch.float32).latent_channels == 32


def test_a_side_gathers_means_over_batches(models: dict[str, Path]) -> None:
    side = Trial(open_autoencoder(str(models["tiny"]), CPU, torch.float32))
    first, second = batch(64, 96, 3), batch(32, 32, 1)
    measured = [side.add(keyed(first)), side.add(keyed(second))]
    result = side.result()
    scores = [
        score(ours, image)
        for images, done in zip((first, second), measured, strict=True)
        for ours, image in zip(done.reconstruction, images, strict=True)
    ]
    assert side.scores == scores
    assert result.num_images == 4
    assert result.mean is not None
    assert result.mean.psnr == pytest.approx(sum(item.psnr for item in scores) / 4)
    assert result.encode_seconds == pytest.approx((3 * measured[0].encode_seconds + measured[1].encode_seconds) / 4)
    assert result.latent_shape is None  # two sizes
    assert result.latent_bytes == (3 * 16 * 24 * 4 + 8 * 8 * 4) * BYTES_PER_NUMBER / 4
    assert result.compression_ratio == pytest.approx(3 * 4 * 4 / 4 / BYTES_PER_NUMBER)


def keyed(images: Tensor) -> ImageBatch:
    return ImageBatch(images, [str(number) for number in range(len(images))])


class Counting:
    """A set metric that only counts."""

    name = "count"

    def __init__(self) -> None:
        self.counts: list[int] = []

    def start(self) -> None:
        self.counts.append(0)

    def add(self, images: Tensor, reconstructions: Tensor) -> None:
        assert images.shape == reconstructions.shape
        self.counts[-1] += len(images)

    def result(self) -> SetScore:
        return SetScore(self.name, float(self.counts[-1]), self.counts[-1])


def test_sides_run_one_after_another_and_fail_alone(models: dict[str, Path]) -> None:
    names = ["no/such-model", str(models["dc"]), str(models["kl"])]
    counting, on_batch = Counting(), []
    batches = [keyed(batch(64, 96, 2)), keyed(batch(66, 64, 1))]  # 66 does not divide by 4
    standings = compare_autoencoders(
        names,
        lambda: batches[:1],
        lambda name: open_autoencoder(name, CPU, torch.float32, HubOptions(offline=True, cache_dir="nowhere")),
        set_metrics=[counting],
        on_batch=lambda number, images, measured, scores: on_batch.append((number, len(images.keys), len(scores))),
    )
    assert [result.failure is None for result in standings] == [False, True, True]
    assert "offline" in (standings[0].failure or "")
    assert counting.counts == [2, 2]
    assert on_batch == [(1, 2, 2), (2, 2, 2)]
    assert standings[1].set_scores == (SetScore("count", 2.0, 2),)
    (broken,) = compare_autoencoders(
        names[2:], lambda: batches, lambda name: open_autoencoder(name, CPU, torch.float32), set_metrics=[counting]
    )
    assert "66x64" in (broken.failure or "")
    assert broken.num_images == 2
    assert broken.set_scores == ()
