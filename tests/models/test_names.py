"""Names that people have for models: working names, repos of other owners, folders of a repo, other weights' files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dcae_cache.errors import CheckpointError, UnknownModelError
from dcae_cache.models import hub, zoo
from dcae_cache.models.folder import Folder, InFolder, read_checkpoint
from dcae_cache.models.zoo import TINY_FOLDER


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("dc-ae-lite-f32c32", "f32c32-sana-lite"),
        ("dc-ai/dc-ae-lite-f32c32", "f32c32-sana-lite"),
        ("dc-ai/dc-ae-lite-f32c32-diffusers", "f32c32-sana-lite"),
        ("dc-ae-turbo-f32c32-sana-1.1", "f32c32-sana-lite"),
        ("mit-han-lab/dc-ae-turbo-f32c32-sana-1.1-diffusers", "f32c32-sana-lite"),
        ("f32c32-in-256px", "f32c32-in-256px"),
        ("mit-han-lab/dc-ae-f32c32-in-1.0-256px", "f32c32-in-256px"),
    ],
)
def test_other_names_of_published_models(name: str, known_as: str) -> None:
    entry = zoo.find(name)
    assert entry is not None
    assert entry.name == known_as


def test_a_working_name_asks_the_repos_that_are_published() -> None:
    entry = zoo.get("mit-han-lab/dc-ae-turbo-f32c32-sana-1.1")
    assert not any("turbo" in repo for repo in hub._repos(entry, "mit-han-lab/dc-ae-turbo-f32c32-sana-1.1"))
    assert hub._repos(entry, "dc-ai/dc-ae-lite-f32c32") == ["dc-ai/dc-ae-lite-f32c32"]


def test_a_folder_of_a_repo() -> None:
    assert hub._split("owner/name") == ("owner/name", "")
    assert hub._split("owner/name/pipe-1K/vae") == ("owner/name", "pipe-1K/vae")
    files = hub.open_files("owner/name/pipe-1K")
    assert isinstance(files, InFolder)
    assert files.where == "owner/name/pipe-1K"


@pytest.mark.parametrize("name", ["owner/name/../other", "owner/name//x", "/owner/name/x", "./owner/name/x"])
def test_what_is_no_folder_of_a_repo(name: str) -> None:
    with pytest.raises((CheckpointError, UnknownModelError)):
        hub.open_files(name)


def test_a_missing_folder_below_one_that_is_there_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(CheckpointError, match="no such folder"):
        hub.open_files("models/dcae/tiny")


@pytest.mark.parametrize("variant", ["fp16", "bf16", "fp32"])
def test_a_pipeline_in_a_folder_with_weights_of_another_dtype(tmp_path: Path, variant: str) -> None:
    inside = tmp_path / "pipe" / "vae"
    shutil.copytree(TINY_FOLDER, inside)
    weights = inside / "diffusion_pytorch_model.safetensors"
    weights.rename(inside / f"diffusion_pytorch_model.{variant}.safetensors")
    found = read_checkpoint(InFolder(Folder(tmp_path), "pipe"), "x")
    assert found.weights.name == f"diffusion_pytorch_model.{variant}.safetensors"
    shutil.copy(found.weights, weights)
    assert read_checkpoint(InFolder(Folder(tmp_path), "pipe"), "x").weights == weights, "the usual name comes first"
