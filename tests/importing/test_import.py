"""Others' latents become a cache: those of an export come back as they were, and what can't be latents of the model
is refused."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dcae_cache import LatentDataset
from dcae_cache.cache.index import load_index
from dcae_cache.cache.integrity import check_integrity
from dcae_cache.config import RunOptions
from dcae_cache.decode.image_files import decode_samples
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.errors import CacheError, ModelError, RecipeMismatchError, SourceError, UsageError
from dcae_cache.export.exporter import ExportOptions
from dcae_cache.export.run import export_cache
from dcae_cache.importing.run import ImportRequest, ImportSummary, import_cache
from dcae_cache.verify import VerifyOptions, verify_cache
from helpers.faults import hashes
from helpers.images import encode, make_folder, tiny_config

TINY = "f32c32-tiny"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"), 12)


@pytest.fixture(scope="module")
def original(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve squares in fp32, with mirrored ones. Read only."""
    out = tmp_path_factory.mktemp("original") / "cache"
    encode(photos, out, bucket="square", crop="adm", flip=True)
    return out


def take_in(folder: Path, out: Path, kind: str, scaled: bool, **options: Any) -> ImportSummary:
    return import_cache(folder, out, ImportRequest(kind=kind, model=TINY, scaled=scaled, **options))


def latents_of(cache: Path, **options: Any) -> list[torch.Tensor]:
    dataset = LatentDataset(cache, **options)
    return [dataset[number]["latents"] for number in range(len(dataset))]


def rows_of(cache: Path) -> dict[str, dict[str, Any]]:
    dataset = LatentDataset(cache, columns=("key", "label", "caption", "attributes", "height", "width"))
    return {row["key"]: row for row in (dataset.describe(number) for number in range(len(dataset)))}


def assert_sound(cache: Path) -> None:
    assert check_integrity(cache) == []
    assert load_index(cache)["complete"] is True


# --- there and back --------------------------------------------------------------------------------------------------


def test_npy_comes_back_bit_for_bit(original: Path, tmp_path: Path) -> None:
    export_cache(original, "npy", tmp_path / "npy")
    summary = take_in(tmp_path / "npy", tmp_path / "cache", "npy", True, part_size=5)
    assert (summary.num_samples, summary.num_parts, summary.dtype) == (12, 3, "fp32")
    assert_sound(tmp_path / "cache")
    back, there = rows_of(tmp_path / "cache"), rows_of(original)
    assert {key: row["label"] for key, row in back.items()} == {key: row["label"] for key, row in there.items()}
    found = dict(zip(back, latents_of(tmp_path / "cache"), strict=True))
    for key, latents in zip(there, latents_of(original), strict=True):
        assert torch.equal(found[key], latents)


def test_wids_comes_back_bit_for_bit(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(bucket="sana-512")
    encode_dataset(photos, tmp_path / "made", config, RunOptions(device="cpu", workers=1, limit=3))
    export_cache(tmp_path / "made", "wids", tmp_path / "wids", ExportOptions(shard_size=2, shuffle=1))
    take_in(tmp_path / "wids", tmp_path / "cache", "wids", True)
    assert_sound(tmp_path / "cache")
    assert load_index(tmp_path / "cache")["recipe"]["bucket"] == "sana-512"
    back, there = rows_of(tmp_path / "cache"), rows_of(tmp_path / "made")
    assert back == there  # keys, labels, captions and original sizes
    found = dict(zip(back, latents_of(tmp_path / "cache"), strict=True))
    for key, latents in zip(there, latents_of(tmp_path / "made"), strict=True):
        assert torch.equal(found[key], latents)


def test_lightningdit_comes_back_to_the_last_place(original: Path, tmp_path: Path) -> None:
    """Raw values are quotients, rounded: the product is off by their rounding and its own, and by no more."""
    export_cache(original, "lightningdit", tmp_path / "raw", ExportOptions(shard_size=5))
    take_in(tmp_path / "raw", tmp_path / "cache", "lightningdit", False)
    assert_sound(tmp_path / "cache")
    assert [row["label"] for row in rows_of(tmp_path / "cache").values()] == [
        row["label"] for row in rows_of(original).values()
    ]
    for flipped in (False, True):
        for found, right in zip(
            latents_of(tmp_path / "cache", flipped=flipped), latents_of(original, flipped=flipped), strict=True
        ):
            torch.testing.assert_close(found, right, rtol=2**-22, atol=0)


@pytest.mark.parametrize(("array", "dtype", "stored"), [("float16", None, "fp16"), ("float64", "bf16", "bf16")])
def test_other_dtypes(tmp_path: Path, array: str, dtype: Any, stored: str) -> None:
    values = make_npy(tmp_path / "npy", dtype=array)
    summary = take_in(tmp_path / "npy", tmp_path / "cache", "npy", True, dtype=dtype)
    assert summary.dtype == stored
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[stored]
    for found, right in zip(latents_of(tmp_path / "cache"), values, strict=True):
        assert torch.equal(found, torch.from_numpy(right).float().to(kind))


# --- what an imported cache is good for ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imported")
    export_cache(original, "npy", root / "npy")
    take_in(root / "npy", root / "cache", "npy", True)
    return root / "cache"


def test_the_recipe_says_that_it_was_imported(imported: Path, original: Path) -> None:
    index = load_index(imported)
    assert index["recipe"]["imported"] == {"format": "npy", "scaled": True}
    assert index["model"] == {"name": TINY, "repo_id": None, "revision": None, "weights_sha256": None}
    assert index["fingerprint"] != load_index(original)["fingerprint"]
    assert "imported" not in load_index(original)["recipe"]


def test_decodes_as_the_original_does(imported: Path, original: Path, tmp_path: Path) -> None:
    files = [decode_samples(cache, ["class0/img000"], tmp_path / cache.parent.name) for cache in (imported, original)]
    assert files[0][0].read_bytes() == files[1][0].read_bytes()


def test_exports_as_the_original_does(imported: Path, original: Path, tmp_path: Path) -> None:
    for name, cache in (("a", imported), ("b", original)):
        export_cache(cache, "npy", tmp_path / name)
    found, expected = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert {name: value for name, value in found.items() if name.endswith(".npy")} == {
        name: value for name, value in expected.items() if name.endswith(".npy")
    }


def test_encode_into_it_is_refused(imported: Path, photos: Path) -> None:
    before = hashes(imported)
    with pytest.raises(RecipeMismatchError, match=r"imported: .*npy.* -> None.*Nothing was changed"):
        encode(photos, imported, bucket="square", crop="adm")
    assert hashes(imported) == before


def test_verify_says_that_there_are_no_images(imported: Path) -> None:
    report = verify_cache(imported)
    assert report.ok
    assert report.checked == {}
    assert any("imported" in warning and "`source`" in warning for warning in report.warnings)
    assert verify_cache(imported, VerifyOptions(integrity_only=True)).ok


def test_verify_compares_with_images_by_key(imported: Path, photos: Path) -> None:
    report = verify_cache(imported, VerifyOptions(source=str(photos), samples=6, device="cpu"))
    assert report.findings == []
    assert len(report.checked) == 6
    assert max(sample.difference for sample in report.checked.values()) < 0.01  # they are these images' latents
    assert report.mean is not None
    assert report.mean.psnr > 15


def test_verify_names_images_that_the_source_lacks(imported: Path, photos: Path, tmp_path: Path) -> None:
    some = tmp_path / "photos"
    shutil.copytree(photos, some)
    (some / "class1" / "img001.jpg").unlink()
    report = verify_cache(imported, VerifyOptions(source=str(some), samples=None, device="cpu"))
    assert [finding.where for finding in report.findings] == ["class1/img001"]
    assert len(report.checked) == 11


# --- refused ---------------------------------------------------------------------------------------------------------


def make_npy(root: Path, *, std: float = 1.0, channels: int = 32, dtype: str = "float32", count: int = 8) -> list[Any]:
    random = np.random.default_rng(0)
    values = random.standard_normal((count, channels, 4, 4))
    arrays = list((std * values / values.std()).astype(dtype))
    (root / "a").mkdir(parents=True)
    for number, array in enumerate(arrays):
        np.save(root / "a" / f"{number}.npy", array)
    return arrays


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


# --- stopped and resumed ---------------------------------------------------------------------------------------------


def test_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    make_npy(tmp_path / "npy", count=12)
    take_in(tmp_path / "npy", tmp_path / "whole", "npy", True, part_size=4)

    class Stopped(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise Stopped

    request = ImportRequest(kind="npy", model=TINY, scaled=True, part_size=4)
    with pytest.raises(Stopped):
        import_cache(tmp_path / "npy", tmp_path / "cache", request, stop)
    assert not (tmp_path / "cache" / "index.json").exists()
    assert import_cache(tmp_path / "npy", tmp_path / "cache", request).parts_reused == 2
    assert hashes(tmp_path / "cache") == hashes(tmp_path / "whole")


def test_into_something_else_is_refused(original: Path, tmp_path: Path) -> None:
    make_npy(tmp_path / "npy")
    cache = tmp_path / "cache"
    shutil.copytree(original, cache)
    before = hashes(cache)
    with pytest.raises(UsageError, match="holds another cache"):
        take_in(tmp_path / "npy", cache, "npy", True)
    assert hashes(cache) == before
    with pytest.raises(UsageError, match=r"holds other files \(a\)"):
        take_in(tmp_path / "npy", tmp_path / "npy", "npy", True)
