"""Others' latents become a cache: those of an export come back as they were, and what can't be latents of the model
is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dcae_cache.cache.index import load_index
from dcae_cache.config import RunOptions
from dcae_cache.decode.image_files import decode_samples
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.errors import RecipeMismatchError, UsageError
from dcae_cache.export.exporter import ExportOptions
from dcae_cache.export.run import export_cache
from dcae_cache.importing.run import ImportRequest, import_cache
from dcae_cache.verify import VerifyOptions, verify_cache
from helpers.faults import hashes
from helpers.images import encode, make_folder, tiny_config
from helpers.importing import TINY, assert_sound, latents_of, make_npy, rows_of, take_in


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"), 12)


@pytest.fixture(scope="module")
def original(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve squares in fp32, with mirrored ones. Read only."""
    out = tmp_path_factory.mktemp("original") / "cache"
    encode(photos, out, bucket="square", crop="adm", flip=True)
    return out


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
