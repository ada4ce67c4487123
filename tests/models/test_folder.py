"""Local folders in either layout: found, loaded by halves, hashed alike, and refused in one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcae_cache.errors import CheckpointError, UnknownModelError
from dcae_cache.models import zoo
from dcae_cache.models.hub import resolve
from dcae_cache.models.layouts import to_diffusers
from dcae_cache.models.weights import load_half
from helpers.golden import efficientvit_weights, load, native_weights, write_diffusers, write_efficientvit

SPEC = load("f32").spec
WEIGHTS = {"efficientvit": "model.safetensors", "diffusers": "diffusion_pytorch_model.safetensors"}


@pytest.fixture
def narrow_zoo(monkeypatch):
    """The zoo with one model more: the narrow golden f32, called ``narrow``."""
    entry = zoo.ModelEntry("narrow", "dc-ae-narrow-1.0", SPEC, 0.5, ("owner/dc-ae-narrow-1.0",))
    known = (*zoo.entries(), entry)
    monkeypatch.setattr(zoo, "entries", lambda: known)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    write_efficientvit(root / "efficientvit", SPEC, "dc-ae-narrow-1.0")
    write_diffusers(root / "diffusers", SPEC, 0.25)
    return root


@pytest.fixture
def folder(request, originals, tmp_path, narrow_zoo):
    """A checkpoint folder of its own for the test, in the layout asked for (diffusers by default)."""
    layout = getattr(request, "param", "diffusers")
    return shutil.copytree(originals / layout, tmp_path / layout)


both_layouts = pytest.mark.parametrize("folder", ["efficientvit", "diffusers"], indirect=True)


def load_encoder(folder, dtype=torch.float32):
    found = resolve(folder)
    return load_half(found.weights, found.spec, found.layout, "encoder", dtype)


def edit_weights(folder, change):
    path = folder / WEIGHTS[folder.name]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@both_layouts
def test_a_folder_says_what_it_is(folder):
    found = resolve(str(folder))
    assert (found.layout, found.spec, found.repo_id, found.revision) == (folder.name, SPEC, None, None)
    assert found.name == ("narrow" if folder.name == "efficientvit" else "diffusers")
    assert found.scaling_factor == (0.5 if folder.name == "efficientvit" else 0.25)
    assert found.weights == folder / WEIGHTS[folder.name]


def test_both_layouts_give_the_same_weights_and_digest(originals, narrow_zoo):
    loaded = {layout: load_encoder(originals / layout) for layout in WEIGHTS}
    assert loaded["efficientvit"].sha256 == loaded["diffusers"].sha256
    states = [half.network.state_dict() for half in loaded.values()]
    expected = native_weights(SPEC, "encoder")
    assert all(torch.equal(state[name], tensor) for state in states for name, tensor in expected.items())


def test_the_digest_is_of_the_stored_weights_whatever_dtype_is_asked_for(folder):
    in_bf16 = load_encoder(folder, torch.bfloat16)
    assert in_bf16.sha256 == load_encoder(folder).sha256
    assert {tensor.dtype for tensor in in_bf16.network.state_dict().values()} == {torch.bfloat16}

    def nudge(tensors):
        tensors["encoder.conv_out.bias"][0] += 1e-3

    before = load_encoder(folder).sha256
    edit_weights(folder, nudge)
    assert load_encoder(folder).sha256 != before


@both_layouts
def test_encoding_needs_no_decoder_tensors(folder):
    def drop_decoder(tensors):
        for name in [name for name in tensors if name.startswith("decoder.")]:
            del tensors[name]

    edit_weights(folder, drop_decoder)
    assert load_encoder(folder).network.decoder is None
    found = resolve(folder)
    with pytest.raises(CheckpointError, match="of the decoder don't fit"):
        load_half(found.weights, found.spec, found.layout, "decoder", torch.float32)


def test_weights_stay_what_they_are_when_the_file_changes(folder):
    network = load_encoder(folder).network
    before = network.encoder.conv_out.weight.clone()
    with (folder / WEIGHTS["diffusers"]).open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 4096)
    assert torch.equal(network.encoder.conv_out.weight, before)


def test_a_pipeline_folder_keeps_it_in_vae(folder, tmp_path):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(folder, pipeline / "vae")
    (pipeline / "model_index.json").write_text("{}")
    assert resolve(pipeline).weights == pipeline / "vae" / WEIGHTS["diffusers"]
    (pipeline / "config.json").write_text(json.dumps({"_class_name": "Transformer"}))
    assert resolve(pipeline).weights == pipeline / "vae" / WEIGHTS["diffusers"]


def shard(folder):
    path = folder / WEIGHTS["diffusers"]
    tensors = load_file(path)
    path.unlink()
    index = {}
    for number, half in enumerate(("encoder", "decoder"), 1):
        name = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        part = {key: tensor for key, tensor in tensors.items() if key.startswith(half)}
        save_file(part, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_shards_are_read_by_their_index(folder):
    expected = load_encoder(folder).sha256
    shard(folder)
    assert resolve(folder).weights.name.endswith(".index.json")
    assert load_encoder(folder).sha256 == expected


def test_a_missing_shard_or_a_bad_index_is_named(folder):
    shard(folder)
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        resolve(folder)
    (folder / f"{WEIGHTS['diffusers']}.index.json").write_text('{"weight_map": {"a": "../../elsewhere.safetensors"}}')
    with pytest.raises(CheckpointError, match="outside its own folder"):
        resolve(folder)
    (folder / f"{WEIGHTS['diffusers']}.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not an index"):
        resolve(folder)


def test_one_error_names_the_first_few_bad_tensors_with_both_shapes(folder):
    def spoil(tensors):
        del tensors["encoder.conv_out.bias"]
        tensors["encoder.conv_in.conv.weight"] = torch.zeros(8, 4, 3, 3)
        tensors["encoder.conv_in.conv.bias"] = tensors["encoder.conv_in.conv.bias"].to(torch.int64)
        tensors["encoder.extra.weight"] = torch.zeros(2)

    edit_weights(folder, spoil)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(folder)
    message = str(caught.value)
    assert "4 tensors of the encoder don't fit" in message
    assert "encoder.conv_in.conv.weight is [8, 4, 3, 3], expected [8, 3, 3, 3]" in message
    assert "encoder.conv_in.conv.bias is of dtype I64" in message
    assert "encoder.conv_out.bias is missing (expected [32])" in message
    assert "and 1 more" in message
    assert "\n" not in message


def test_the_weights_of_another_model_are_refused(folder):
    spec = load("f32-sana").spec
    save_file(to_diffusers(native_weights(spec), spec), folder / WEIGHTS["diffusers"])
    with pytest.raises(CheckpointError, match="tensors of the encoder don't fit"):
        load_encoder(folder)


@pytest.mark.parametrize("keep", [0, 5, 3000, -1])
def test_a_truncated_file_is_one_clear_line(folder, keep):
    path = folder / WEIGHTS["diffusers"]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file.*download it again") as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)


def test_a_git_lfs_pointer_is_recognised(folder):
    (folder / WEIGHTS["diffusers"]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_encoder(folder)


@pytest.mark.parametrize("suffix", ["pt", "bin", "ckpt", "pth"])
def test_a_pickle_is_refused_by_name_with_the_reason(folder, suffix):
    (folder / WEIGHTS["diffusers"]).unlink()
    pickle = folder / f"diffusion_pytorch_model.{suffix}"
    pickle.write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=rf"model\.{suffix}.*can run any code"):
        resolve(folder)
    with pytest.raises(CheckpointError, match="can run any code"):
        resolve(pickle)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=rf"model\.{suffix}.*can run any code"):
        resolve(folder)


def test_a_folder_without_weights_lists_what_it_holds(folder):
    (folder / WEIGHTS["diffusers"]).rename(folder / "diffusion_pytorch_model.ema.safetensors")
    with pytest.raises(CheckpointError, match=r"has no diffusion_pytorch_model\.safetensors .*ema\.safetensors"):
        resolve(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ('{"_class_name": ', "is not JSON"),
        ("[1]", "holds a list"),
        ("{}", "neither a model_name"),
        ('{"model_name": "dc-ae-f32c32-mixx-1.0"}', "model_name is unknown.*nearest: f32c32-mix"),
        ('{"_class_name": "AutoencoderKL"}', "_class_name is 'AutoencoderKL', expected 'AutoencoderDC'"),
    ],
)
def test_a_bad_config_is_one_clear_line(folder, text, reason):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{reason}") as caught:
        resolve(folder)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_no_folder_and_a_plain_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(tmp_path / "absent")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a file.*give the folder"):
        resolve(tmp_path / "weights.safetensors")
    with pytest.raises(UnknownModelError, match="nearest: f32c32-mix"):
        resolve("f32c32-mxi")


def test_a_folder_named_like_a_repo_comes_before_the_hub(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "mit-han-lab" / "dc-ae-f32c32-mix-1.0")
    monkeypatch.chdir(tmp_path)
    assert resolve("mit-han-lab/dc-ae-f32c32-mix-1.0").repo_id is None


def test_the_shipped_model_is_there_and_whole():
    entry = zoo.get("f32c32-tiny")
    found = resolve("f32c32-tiny")
    assert (found.name, found.repo_id, found.scaling_factor) == ("f32c32-tiny", None, entry.scaling_factor)
    assert entry.scaling_factor is not None
    for half in ("encoder", "decoder"):
        load_half(found.weights, found.spec, found.layout, half, torch.float32)


@pytest.mark.slow
def test_a_full_size_f32c32_folder_loads_its_encoder(tmp_path):
    spec = zoo.get("f32c32-mix").spec
    (tmp_path / "config.json").write_text('{"model_name": "dc-ae-f32c32-mix-1.0"}')
    save_file(efficientvit_weights(spec, "encoder"), Path(tmp_path / "model.safetensors"))
    found = resolve(tmp_path)
    assert (found.name, found.scaling_factor) == ("f32c32-mix", 0.4552)
    loaded = load_half(found.weights, found.spec, found.layout, "encoder", torch.bfloat16)
    assert sum(parameter.numel() for parameter in loaded.network.parameters()) == 123172384
