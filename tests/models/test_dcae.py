"""DCAE: what encode and decode give, what they read, and what they refuse."""

from __future__ import annotations

import inspect
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcae_cache import DCAE
from dcae_cache.errors import CheckpointError, TensorError, UsageError
from dcae_cache.models import zoo
from dcae_cache.models.hub import resolve
from dcae_cache.models.layouts import from_published, to_efficientvit
from helpers.golden import load, native_weights, relative_error, write_diffusers

NAMES = ("f32", "f32-sana", "f32-1.5")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Golden models in diffusers layout, by name."""
    root = tmp_path_factory.mktemp("models")
    return {name: write_diffusers(root / name, load(name).spec, 0.25) for name in NAMES}


@pytest.fixture(scope="module")
def narrow(folders):
    return DCAE(folders["f32"], device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_encode_and_decode_are_the_references(folders, name):
    golden = load(name)
    ae = DCAE(folders[name], device="cpu")
    latents = ae.encode(golden.pixels)
    pixels = ae.decode(golden.latents)
    assert relative_error(latents, golden.latents) < 1e-5
    assert relative_error(pixels, golden.reconstruction) < 1e-5
    assert latents.is_contiguous()
    assert pixels.is_contiguous()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_folder_gives_the_same_latents_in_diffusers(folders, name):
    diffusers = pytest.importorskip("diffusers")
    pixels = load(name).pixels
    theirs = diffusers.AutoencoderDC.from_pretrained(folders[name], local_files_only=True)
    ae = DCAE(folders[name], device="cpu")
    with torch.inference_mode():
        expected = theirs.encode(pixels).latent
        assert relative_error(ae.encode(pixels), expected) < 1e-5
        assert relative_error(ae.decode(expected), theirs.decode(expected).sample) < 1e-5
    assert ae.scaling_factor == theirs.config.scaling_factor
    assert ae.spatial_compression_ratio == theirs.spatial_compression_ratio


def test_both_layouts_give_the_same_latents_to_the_bit(folders, tmp_path, monkeypatch):
    spec, pixels = load("f32").spec, load("f32").pixels
    entry = zoo.ModelEntry("narrow", "dc-ae-narrow-1.0", spec, 0.25)
    known = (*zoo.entries(), entry)
    monkeypatch.setattr(zoo, "entries", lambda: known)
    published = load_file(folders["f32"] / WEIGHTS)
    native = {
        name: tensor
        for half in ("encoder", "decoder")
        for name, tensor in from_published(published, spec, half, "diffusers").items()
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "dc-ae-narrow-1.0"}))
    save_file(to_efficientvit(native, spec), tmp_path / "model.safetensors")
    one, other = DCAE(folders["f32"], device="cpu"), DCAE(tmp_path, device="cpu")
    assert torch.equal(one.encode(pixels), other.encode(pixels))
    assert torch.equal(one.decode(load("f32").latents), other.decode(load("f32").latents))
    assert one.encoder_sha256 == other.encoder_sha256
    assert one.decoder_sha256 == other.decoder_sha256 != one.encoder_sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_results_are_of_the_dtype_asked_for_whatever_comes_in(folders, dtype):
    ae = DCAE(folders["f32"], device="cpu", dtype=dtype)
    latents = ae.encode(load("f32").pixels[:1, :, :32, :32].double())
    assert latents.dtype == ae.dtype == dtype
    assert ae.decode(latents.float()).dtype == dtype
    assert {parameter.dtype for parameter in ae._half("encoder").network.parameters()} == {dtype}


def test_what_it_says_of_itself(narrow, folders):
    assert (narrow.name, narrow.scaling_factor) == ("f32", 0.25)
    assert (narrow.spatial_compression_ratio, narrow.latent_channels) == (32, 32)
    assert (narrow.device, narrow.dtype) == (torch.device("cpu"), torch.float32)
    assert narrow.checkpoint.weights == folders["f32"] / WEIGHTS
    assert repr(narrow) == "DCAE('f32', device='cpu', dtype=torch.float32)"
    assert DCAE(folders["f32"], device="cpu", scaling_factor=0.5, with_decoder=False).scaling_factor == 0.5
    assert DCAE(resolve(folders["f32"]), device="cpu", with_decoder=False).name == "f32"


def test_an_unpublished_scaling_factor_is_none_and_never_one(tmp_path):
    write_diffusers(tmp_path, load("f32").spec, 1.0, "encoder")
    assert DCAE(tmp_path, device="cpu").scaling_factor is None


def test_no_gradients_and_training_mode_never(narrow):
    latents = narrow.encode(load("f32").pixels.clone().requires_grad_(True))
    assert not latents.requires_grad
    assert not narrow._half("encoder").network.training
    assert not any(parameter.requires_grad for parameter in narrow._half("encoder").network.parameters())


def test_encoding_alone_never_reads_the_decoder(folders, tmp_path):
    folder = shutil.copytree(folders["f32"], tmp_path / "f32")
    tensors = load_file(folder / WEIGHTS)
    encoder_only = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    save_file(encoder_only, folder / WEIGHTS)
    ae = DCAE(folder, device="cpu")
    assert relative_error(ae.encode(load("f32").pixels), load("f32").latents) < 1e-5
    with pytest.raises(CheckpointError, match="decoder"):
        ae.decode(load("f32").latents)


def test_decoding_alone_never_reads_the_encoder(folders, tmp_path):
    folder = write_diffusers(tmp_path, load("f32").spec, 0.25, "decoder")
    ae = DCAE(folder, device="cpu", with_encoder=False)
    assert relative_error(ae.decode(load("f32").latents), load("f32").reconstruction) < 1e-5
    with pytest.raises(UsageError, match="with_encoder=False"):
        ae.encode(load("f32").pixels)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (torch.zeros(1, 3, 100, 64), "height 100.*factor 32.*nearest sizes are 96 or 128"),
        (torch.zeros(1, 3, 64, 31), "width 31.*nearest sizes are 32"),
        (torch.zeros(3, 64, 64), r"\[3, 64, 64\], expected \[N, 3, H, W\].*\[None\]"),
        (torch.zeros(1, 1, 3, 64, 64), r"expected \[N, 3, H, W\]"),
        (torch.zeros(0, 3, 64, 64), "none of them 0"),
        (torch.zeros(1, 3, 0, 64), "none of them 0"),
        (torch.zeros(1, 4, 64, 64), "4 channels, expected 3"),
        (torch.zeros(1, 64, 64, 3), "64 channels, expected 3.*move the last dimension"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"torch\.uint8.*images\.float\(\) / 127\.5 - 1"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), r"torch\.int64, expected a float dtype"),
        ([[0.0]], r"a list, expected a torch\.Tensor"),
    ],
)
def test_pixels_it_can_not_encode(narrow, pixels, said):
    with pytest.raises(TensorError, match=said):
        narrow.encode(pixels)


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        (torch.zeros(1, 16, 2, 2), "16 channels, f32 expects 32"),
        (torch.zeros(32, 2, 2), r"expected \[N, c, h, w\]"),
        (torch.zeros(1, 32, 2, 2, dtype=torch.int8), r"torch\.int8, expected a float dtype"),
    ],
)
def test_latents_it_can_not_decode(narrow, latents, said):
    with pytest.raises(TensorError, match=said):
        narrow.decode(latents)


def test_1_5_models_decode_a_leading_subset_of_channels(folders):
    ae = DCAE(folders["f32-1.5"], device="cpu", with_encoder=False)
    latents = load("f32-1.5").latents
    assert ae.decode(latents[:, :16]).shape == load("f32-1.5").pixels.shape
    with pytest.raises(TensorError, match=r"33 channels, .* expects 1 to 32$"):
        ae.decode(torch.zeros(1, 33, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dtype": torch.int8}, "dtype is torch.int8, expected one of torch.float32"),
        ({"with_encoder": False, "with_decoder": False}, "both False"),
        ({"scaling_factor": 0.0}, "expected a positive number"),
        ({"scaling_factor": float("nan")}, "expected a positive number"),
    ],
)
def test_arguments_that_make_no_sense(folders, arguments, said):
    with pytest.raises(UsageError, match=said):
        DCAE(folders["f32"], device="cpu", **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(folders):
    with pytest.raises(UsageError, match=r"`device` is cuda, but torch .* sees 0 devices"):
        DCAE(folders["f32"], device="cuda")
    assert DCAE(folders["f32"], with_decoder=False).device == torch.device("cpu")


def test_the_arguments_of_the_first_class_stay_in_their_place():
    names = list(inspect.signature(DCAE).parameters)
    assert names[:4] == ["model", "device", "dtype", "cache_dir"]
    assert inspect.signature(DCAE).parameters["model"].default == "dc-ae-f32c32-mix-1.0"


@pytest.mark.slow
def test_the_full_f32c32_in_efficientvit_layout(tmp_path):
    golden = load("full-f32c32")
    (tmp_path / "config.json").write_text('{"model_name": "dc-ae-f32c32-mix-1.0"}')
    save_file(to_efficientvit(native_weights(golden.spec, "encoder"), golden.spec), tmp_path / "model.safetensors")
    ae = DCAE(tmp_path, device="cpu")
    assert (ae.name, ae.scaling_factor) == ("f32c32-mix", 0.4552)
    assert relative_error(ae.encode(golden.pixels), golden.latents) < 1e-5
