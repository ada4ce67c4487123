"""What can't be latents of the model that was named, or no folder of the format, is refused before it is stored."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dcae_cache.cache.index import load_index
from dcae_cache.errors import CacheError, ModelError, SourceError, UsageError
from dcae_cache.importing.run import ImportRequest, import_cache
from helpers.importing import TINY, assert_sound, make_npy, rows_of, take_in

FACTOR = 2.58396  # of the shipped model, about


@pytest.mark.parametrize(
    ("std", "model", "scaled", "message"),
    [
        (
            1 / FACTOR,
            TINY,
            True,
            r"deviation of 0\.387; scaled ones of f32c32-tiny have about 1 .*2\.58.*Were they raw, it would be 1 ",
        ),
        (1.0, TINY, False, r"deviation of 1; raw ones of f32c32-tiny have about 0\.387.*Were they scaled"),
        (1 / 0.4552, "f32c32-mix", True, r"deviation of 2\.2; scaled ones of f32c32-mix have about 1 .*Were they raw"),
        (0.9 / 0.4552, "f32c32-mix", True, r"deviation of 1\.98.*Were they raw"),  # believable by itself
        (1.0, "f32c32-mix", False, r"deviation of 1; raw ones of f32c32-mix have about 2\.2.*Were they scaled"),
        (1.1, "f32c32-mix", False, r"Were they scaled"),
        (9.0, "f32c32-mix", True, r"deviation of 9; .*Is f32c32-mix the model"),
        (0.01, "f32c32-mix", False, r"deviation of 0\.01; .*Is f32c32-mix the model"),
    ],
)
def test_a_scale_that_contradicts_what_is_said(
    tmp_path: Path, std: float, model: str, scaled: bool, message: str
) -> None:
    make_npy(tmp_path / "npy", std=std, count=64)
    request = ImportRequest(kind="npy", model=model, scaled=scaled)
    with pytest.raises(UsageError, match=message):
        import_cache(tmp_path / "npy", tmp_path / "cache", request)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("std", "scaled"), [(1.0, True), (0.7, True), (1.4, True), (2.2, False), (3.0, False)])
def test_a_scale_that_fits(tmp_path: Path, std: float, scaled: bool) -> None:
    make_npy(tmp_path / "npy", std=std, count=64)
    request = ImportRequest(kind="npy", model="f32c32-mix", scaled=scaled)
    import_cache(tmp_path / "npy", tmp_path / "cache", request)
    assert load_index(tmp_path / "cache")["statistics"]["std"][0] == pytest.approx(
        std * (1 if scaled else 0.4552), 0.2
    )


def test_any_scale_is_taken_if_asked_for(tmp_path: Path) -> None:
    make_npy(tmp_path / "npy", std=9.0)
    take_in(tmp_path / "npy", tmp_path / "cache", "npy", True, any_scale=True)
    assert_sound(tmp_path / "cache")


def test_a_dead_channel(tmp_path: Path) -> None:
    for path, array in enumerate(make_npy(tmp_path / "npy")):
        array[3] = 0.5
        np.save(tmp_path / "npy" / "a" / f"{path}.npy", array)
    with pytest.raises(UsageError, match="hardly vary in channels 3"):
        take_in(tmp_path / "npy", tmp_path / "cache", "npy", True)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((16, 4, 4), np.float32), r"has 16 channels, f32c32-tiny gives 32\."),
        (np.zeros((64, 4, 4), np.float32), r"has 64 channels.*mean and std together"),
        (np.zeros((32, 4), np.float32), r"is of shape \[32, 4\], expected \[32, h, w\]"),
        (np.full((32, 4, 4), np.nan, np.float32), r"holds NaN or Inf"),
        (np.zeros((32, 4, 4), np.int32), r"holds int32, expected floating-point"),
        (np.zeros((32, 4, 4), np.float64), r"is of torch\.float64, others of fp32\. Choose one with `dtype`"),
        (np.zeros((32, 4, 4), np.float16), r"is of torch.float16, others of fp32\. Choose one with `dtype`"),
        (np.array([{"code": 1}], dtype=object), r"can't be read as \.npy"),
    ],
)
def test_one_file_that_cannot_be_a_latent(tmp_path: Path, array: Any, message: str) -> None:
    make_npy(tmp_path / "npy")
    np.save(tmp_path / "npy" / "a" / "5.npy", array)
    with pytest.raises(CacheError, match=message):
        take_in(tmp_path / "npy", tmp_path / "cache", "npy", True)
    assert not (tmp_path / "cache" / "index.json").exists()


def test_latents_of_a_dtype_that_no_cache_has(tmp_path: Path) -> None:
    make_npy(tmp_path / "npy", dtype="float64")
    with pytest.raises(CacheError, match=r"latents of torch\.float64, which a cache can't.*`dtype`"):
        take_in(tmp_path / "npy", tmp_path / "cache", "npy", True)


def test_folders_that_are_not_of_the_format(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for kind, message in (
        ("npy", "no .npy files"),
        ("lightningdit", "no .safetensors"),
        ("wids", "neither wids-meta"),
    ):
        with pytest.raises(CacheError, match=message):
            take_in(tmp_path / "empty", tmp_path / "cache", kind, True)
    with pytest.raises(UsageError, match="is no folder"):
        take_in(tmp_path / "nowhere", tmp_path / "cache", "npy", True)


def test_safetensors_that_are_not_of_the_format(tmp_path: Path) -> None:
    latents = torch.randn(4, 32, 4, 4)
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({"moments": latents}, "holds moments, expected a tensor 'latents'"),
        ({"latents": latents[0]}, r"are of shape \[32, 4, 4\], expected \[N, c, h, w\]"),
        ({"latents": latents, "labels": torch.zeros(3)}, "expected as many of each"),
    ]
    for tensors, message in cases:
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(CacheError, match=message):
            take_in(tmp_path, tmp_path / "cache", "lightningdit", True)
    save_file({"latents": latents}, tmp_path / "a.safetensors")
    save_file({"latents": latents, "latents_flip": latents.clone()}, tmp_path / "b.safetensors")
    with pytest.raises(CacheError, match=r"a\.safetensors has no latents_flip, and b\.safetensors has"):
        take_in(tmp_path, tmp_path / "cache", "lightningdit", True)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_tars_of_others(tmp_path: Path) -> None:
    """Keys with dots, [1, c, h, w], captions without a prompt, no index and no key inside."""
    random = np.random.default_rng(0)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(3):
            with io.BytesIO() as file:
                np.save(file, random.standard_normal((1, 32, 4, 8)).astype(np.float32))
                add(tar, f"dir/a.{number}.npy", file.getvalue())
            notes = {"captions": ["one", "two"], "clip_scores": [1, 2], "height": 200, "width": 400, "url": "u"}
            add(tar, f"dir/a.{number}.json", json.dumps(notes).encode())
    take_in(tmp_path, tmp_path / "cache", "wids", True)
    row = rows_of(tmp_path / "cache")["x/dir/a.1"]
    assert (row["caption"], row["height"], row["width"]) == ("one", 200, 400)
    assert json.loads(row["attributes"]) == {"url": "u", "captions": ["one", "two"], "clip_scores": [1, 2]}
    (tmp_path / "wids-meta.json").write_text(json.dumps({"shardlist": [{"url": "x.tar", "nsamples": 4}]}))
    with pytest.raises(CacheError, match=r"holds 3 samples, wids-meta\.json says 4"):
        take_in(tmp_path, tmp_path / "other", "wids", True)
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        add(tar, "b.json", b"{}")
    with pytest.raises(CacheError, match=r"b has no \.npy, only json"):
        take_in(tmp_path, tmp_path / "other", "wids", True)


def test_keys_must_be_unique(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(2):
            with io.BytesIO() as file:
                np.save(file, np.zeros((32, 4, 4), np.float32))
                add(tar, f"{number}.npy", file.getvalue())
            add(tar, f"{number}.json", b'{"key": "same"}')
    with pytest.raises(SourceError, match="Two samples have the key 'same'"):
        take_in(tmp_path, tmp_path / "cache", "wids", True)


def test_models_that_are_not_known(tmp_path: Path) -> None:
    make_npy(tmp_path / "npy", channels=128)
    with pytest.raises(ModelError, match="called 'f32c32-nonsense'"):
        import_cache(
            tmp_path / "npy", tmp_path / "cache", ImportRequest(kind="npy", model="f32c32-nonsense", scaled=True)
        )
    request = ImportRequest(kind="npy", model="f32c128-1.5", scaled=True)
    with pytest.raises(ModelError, match=r"no scaling factor\. Pass the one that was used with `scaling_factor`"):
        import_cache(tmp_path / "npy", tmp_path / "cache", request)
    request = ImportRequest(kind="npy", model="f32c128-1.5", scaled=True, scaling_factor=0.5)
    import_cache(tmp_path / "npy", tmp_path / "cache", request)
    assert load_index(tmp_path / "cache")["latent"]["scaling_factor"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mds"}, "no format 'mds' to import; there are npy"),
        ({"part_size": 0}, "`part_size` must be at least 1"),
        ({"scaling_factor": -1.0}, "`scaling_factor` must be above 0"),
        ({"dtype": "fp8"}, "`dtype` is one of"),
    ],
)
def test_requests_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"kind": "npy", "model": TINY, "scaled": True}
    with pytest.raises(UsageError, match=message):
        ImportRequest(**(values | changes))
