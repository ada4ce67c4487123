"""Which model exactly, and how much of it: channel subsets, variants of the weights' files, folders in a repo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcae_cache import LatentDataset
from dcae_cache.cache.index import load_index
from dcae_cache.compute.devices import pick_device
from dcae_cache.config import RunOptions
from dcae_cache.decode.cache_model import CacheModel
from dcae_cache.encode.run_model import RunModel, find_model, identify
from dcae_cache.errors import CheckpointError, UsageError, VerificationError
from dcae_cache.models.dcae import DCAE
from dcae_cache.models.hub import resolve
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.golden import load, write_diffusers
from helpers.images import encode, make_folder, tiny_config

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
IN_FP16 = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("source"), 4)


@pytest.fixture(scope="module")
def narrow_15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow DC-AE 1.5."""
    return write_diffusers(tmp_path_factory.mktemp("models") / "narrow", load("f32-1.5").spec, 0.5)


@pytest.fixture
def two_variants(tmp_path: Path) -> Path:
    """A model whose weights are there twice: in fp32, and rounded to fp16."""
    folder = write_diffusers(tmp_path / "model", load("f32").spec, 0.5)
    save_file({name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()}, folder / IN_FP16)
    return folder


def recipe(cache: Path) -> dict[str, object]:
    return dict(load_index(cache)["recipe"])


def findings(cache: Path) -> list[str]:
    return [str(finding) for finding in verify_cache(cache, VerifyOptions(samples=4, device="cpu")).findings]


def test_the_first_channels_of_a_model_that_is_made_for_it(source: Path, narrow_15: Path, tmp_path: Path) -> None:
    full, few = tmp_path / "full", tmp_path / "few"
    encode(source, full, model=str(narrow_15), flip=True)
    encode(source, few, model=str(narrow_15), flip=True, latent_channels=8)
    index = load_index(few)
    assert index["latent"]["channels"] == 8 == len(index["statistics"]["mean"])
    for flipped in (False, True):
        whole = {sample["key"]: sample["latents"] for sample in LatentDataset(full, flipped=flipped)}
        for sample in LatentDataset(few, flipped=flipped):
            assert torch.equal(sample["latents"], whole[sample["key"]][:8])
    assert findings(few) == []
    assert index["fingerprint"] != load_index(full)["fingerprint"]
    stored = LatentDataset(few).stack([0])
    padded = torch.cat([stored / 0.5, torch.zeros(1, 24, *stored.shape[2:])], dim=1)
    expected = DCAE(str(narrow_15), CPU).decode(padded).clamp(-1, 1).add(1).mul(127.5).round()
    assert (CacheModel(index, CPU).decode(stored).float() - expected).abs().max() <= 1


def test_all_channels_asked_for_by_number_are_the_same_recipe(source: Path, narrow_15: Path, tmp_path: Path) -> None:
    encode(source, tmp_path / "out", model=str(narrow_15))
    assert encode(source, tmp_path / "out", model=str(narrow_15), latent_channels=32).encoded == 0


@pytest.mark.parametrize(
    ("channels", "of", "message"),
    [
        (16, "f32c32-tiny", "`latent_channels` is 16, but this model's 32 channels mean something only together"),
        (33, None, "`latent_channels` is 33; this model has 1 to 32"),
        (0, None, "`latent_channels` must be at least 1, not 0"),
    ],
)
def test_channels_that_a_model_does_not_have_are_refused_before_anything_is_written(
    channels: int, of: str | None, message: str, source: Path, narrow_15: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        encode(source, tmp_path / "out", model=of or str(narrow_15), latent_channels=channels)
    assert not (tmp_path / "out").exists()


def test_a_cache_of_other_channels_than_the_model_has_is_not_its_cache(cache: Path) -> None:
    index = load_index(cache)
    index["recipe"]["latent_channels"] = 16
    with pytest.raises(
        VerificationError, match="is not the model of this cache: the cache's latents have 16 channels"
    ):
        CacheModel(index, CPU)


def test_the_variant_that_is_asked_for_is_the_one_that_encodes(
    source: Path, two_variants: Path, tmp_path: Path
) -> None:
    for name, variant in (("plain", None), ("half", "fp16")):
        encode(source, tmp_path / name, model=str(two_variants), variant=variant)
        assert findings(tmp_path / name) == [], "verify takes the same file"
    plain, half = recipe(tmp_path / "plain"), recipe(tmp_path / "half")
    assert plain["weights_sha256"] != half["weights_sha256"]
    assert "variant" not in plain, "recipes without it stay as they are"
    assert half["variant"] == "fp16"
    found = resolve(two_variants, variant="fp16")
    assert half["weights_sha256"] == RunModel(found, CPU, "fp32").encoder_sha256()


def test_a_variant_by_name_and_the_only_file_there_is_are_the_same_recipe(
    source: Path, two_variants: Path, tmp_path: Path
) -> None:
    encode(source, tmp_path / "out", model=str(two_variants), variant="fp16")
    (two_variants / WEIGHTS).unlink()
    assert encode(source, tmp_path / "out", model=str(two_variants)).encoded == 0
    (two_variants / IN_FP16).rename(two_variants / WEIGHTS)
    CacheModel(load_index(tmp_path / "out"), CPU, str(two_variants))  # a model that moved needn't keep the name


def test_variants_in_shards(two_variants: Path) -> None:
    expected = RunModel(resolve(two_variants, variant="fp16"), CPU, "fp32").encoder_sha256()
    shard = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
    (two_variants / IN_FP16).rename(two_variants / shard)
    index = {"weight_map": dict.fromkeys(load_file(two_variants / shard), shard)}
    (two_variants / f"{WEIGHTS}.index.fp16.json").write_text(json.dumps(index))
    assert RunModel(resolve(two_variants, variant="fp16"), CPU, "fp32").encoder_sha256() == expected
    (two_variants / shard).unlink()
    with pytest.raises(CheckpointError, match=r"has no .*fp16-00001-of-00001.*index\.fp16\.json names"):
        resolve(two_variants, variant="fp16")


def test_a_variant_that_is_not_there_is_named(two_variants: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no diffusion_pytorch_model\.bf16\.safetensors \(found: .*fp16"):
        resolve(two_variants, variant="bf16")
    with pytest.raises(UsageError, match=r"`variant` is '\.\./\.\./secret'; expected the middle of a file's name"):
        resolve(two_variants, variant="../../secret")


def test_another_variant_of_the_same_commit_is_hashed_anew(two_variants: Path) -> None:
    """A hash that is known of a commit is that of one of its files."""
    config = tiny_config(model=str(two_variants), variant="fp16")
    model = find_model(config, RunOptions(), pick_device("cpu"))
    model.checkpoint = replace(model.checkpoint, repo_id="owner/name", revision="abc")
    known = {"repo_id": "owner/name", "revision": "abc", "weights_sha256": "of the plain file"}
    assert identify(model, config, known).weights_sha256 == model.encoder_sha256()
    assert identify(model, config, known | {"variant": "fp16"}).weights_sha256 == "of the plain file"


def test_a_model_in_a_folder_of_a_folder(source: Path, two_variants: Path, tmp_path: Path) -> None:
    (tmp_path / "pipelines" / "a").mkdir(parents=True)
    two_variants.rename(tmp_path / "pipelines" / "a" / "autoencoder")
    encode(source, tmp_path / "out", model=str(tmp_path / "pipelines"), subfolder="a/autoencoder/")
    assert recipe(tmp_path / "out")["model_source"] == str(tmp_path / "pipelines" / "a" / "autoencoder")
    assert findings(tmp_path / "out") == [], "verify finds it without being told"


def test_what_is_no_folder_of_a_model(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`subfolder` is 'vae', but f32c32-tiny is the name of one model"):
        encode(source, tmp_path / "out", subfolder="vae")
    with pytest.raises(UsageError, match=r"`subfolder` is 'a/\.\./\.\./b'; expected the path of a folder inside"):
        tiny_config(subfolder="a/../../b")
