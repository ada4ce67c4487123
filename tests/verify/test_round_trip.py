"""A wrong row is found and named although every hash and sum in the cache agrees with it."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dcae_cache.cache.integrity import check_integrity
from dcae_cache.cache.parts import read_rows
from dcae_cache.errors import ModelError
from dcae_cache.verify import round_trip
from dcae_cache.verify.checks import VerifyOptions, VerifyReport, check_statistics, verify_cache
from dcae_cache.verify.diagnosis import agrees, diagnose, relative_difference, tolerance_for
from helpers.false_caches import Tensors, change_rows, falsify
from helpers.images import encode, encoded_image, make_folder

PART, NAME = "part-000000", "latents.4x4"  # the part of the first eight images; two are square ones, of 4x4 cells


def verify(cache: Path, **options: Any) -> VerifyReport:
    return verify_cache(cache, VerifyOptions(**({"device": "cpu", "samples": None} | options)))


def keys_in(cache: Path) -> list[str]:
    """The keys of NAME's rows, in order."""
    rows = [row for row in read_rows(cache, PART).to_pylist() if row["bucket_height"] == row["bucket_width"] == 128]
    return [row["key"] for row in sorted(rows, key=lambda row: row["row"])]


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "copy"))


def swap(tensors: Tensors) -> None:
    tensors[NAME] = tensors[NAME][[1, 0, *range(2, len(tensors[NAME]))]]


def row_of(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[NAME][0] = change(tensors[NAME][0].clone())

    return apply


def test_two_rows_swapped_are_named_each_with_the_other(copy: Path) -> None:
    first, second = keys_in(copy)[:2]
    falsify(copy, PART, swap)
    assert check_integrity(copy) == []
    found = {finding.where: finding.what for finding in verify(copy).findings}
    assert set(found) == {first, second}
    assert f"stands in the row of {second}" in found[first]
    assert f"stands in the row of {first}" in found[second]
    assert "is not its image's latent" in found[first]


def test_many_wrong_rows_are_all_named_and_the_first_are_traced(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a cache that is wrong from end to end would take days to verify."""
    monkeypatch.setattr(round_trip, "_TRACED", 1)
    falsify(copy, PART, swap)
    findings = verify(copy).findings
    assert [finding.where for finding in findings] == keys_in(copy)[:2]
    assert ["stands in the row of" in finding.what for finding in findings] == [True, False]
    assert all("is not its image's latent" in finding.what for finding in findings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row * 1.01, "is its image's latent times 1.01"),
        (lambda row: row / 0.3189, "is its image's latent times 3.13"),
        (lambda row: row.flip(2), "is its image's latent flipped left-right"),
        (lambda row: row.flip(1), "flipped upside down"),
        (lambda row: row.transpose(1, 2), "with rows and columns swapped"),
        (lambda row: torch.zeros_like(row), "is not its image's latent: they differ by 100%"),
    ],
)
def test_one_wrong_row_is_named_with_what_it_is(copy: Path, change: Callable[[Tensor], Tensor], said: str) -> None:
    key = keys_in(copy)[0]
    falsify(copy, PART, row_of(change))
    assert check_integrity(copy) == []
    (finding,) = verify(copy).findings
    assert finding.where == key
    assert said in finding.what
    assert PART in finding.what
    assert "delete the files of that part" in finding.mend


def test_the_advice_on_a_wrong_row_mends_it(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "photos", 9), tmp_path / "out"
    encode(source, out)
    falsify(out, PART, swap)
    assert len(verify(out).findings) == 2
    for path in (out / "parts").glob(f"{PART}.*"):
        path.unlink()
    encode(source, out)
    assert verify(out).ok


def test_a_stale_latent_is_found(tmp_path: Path) -> None:
    """The image changed, and the table's hash with it: only encoding it again shows that its latent is the old one."""
    source, out = make_folder(tmp_path / "photos", 6), tmp_path / "out"
    encode(source, out)
    changed = source / "class2/img002.jpg"
    changed.write_bytes(encoded_image(256, 256, seed=77))
    (finding,) = verify(out).findings
    assert (finding.where, finding.what) == ("class2/img002", "its source has changed since it was encoded")

    def renew(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["key"] == "class2/img002":
                row["source_hash"] = hashlib.sha256(changed.read_bytes()).hexdigest()
                row["source_bytes"] = changed.stat().st_size

    change_rows(out, PART, renew)
    (finding,) = verify(out).findings
    assert finding.where == "class2/img002"
    assert "is not its image's latent" in finding.what


def test_the_latents_of_mirrored_images_are_checked_too(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "photos", 6), tmp_path / "out"
    encode(source, out, flip=True)
    assert verify(out).ok

    def forget_to_mirror(tensors: Tensors) -> None:
        tensors[NAME.replace(".", "_flip.", 1)][0] = tensors[NAME][0]

    falsify(out, PART, forget_to_mirror)
    (finding,) = verify(out).findings
    assert finding.where == keys_in(out)[0]
    assert "of its mirrored image" in finding.what
    assert "is its image's latent of the mirrored image" in finding.what


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounding_is_no_finding(tmp_path: Path, dtype: str) -> None:
    source = make_folder(tmp_path / "photos", 6)
    encode(source, tmp_path / "half", dtype=dtype)
    encode(source, tmp_path / "mixed", dtype=dtype, compute_dtype="fp32")
    for name in ("half", "mixed"):
        result = verify(tmp_path / name)
        assert result.ok
        assert 0 <= max(sample.difference for sample in result.checked.values()) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_cache_made_on_a_cpu_passes_on_a_gpu_and_a_wrong_row_does_not(tmp_path: Path, dtype: str) -> None:
    encode(make_folder(tmp_path / "photos", 8), tmp_path / "out", dtype=dtype)
    assert verify(tmp_path / "out", device="cuda", against=("f32c32-tiny",)).ok
    falsify(tmp_path / "out", PART, row_of(lambda row: row * 1.01))
    (finding,) = verify(tmp_path / "out", device="cuda").findings
    assert "times 1.01" in finding.what


def test_a_half_computed_latent_agrees_and_a_scaled_one_does_not() -> None:
    """The limits lie between what rounding does and what a mistake does."""
    right = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(1))
    limits = tolerance_for("bf16", "bf16")
    assert agrees((right * 1.003 + 0.02 * noise).bfloat16(), right, limits)
    assert not agrees((right * 1.01).bfloat16(), right, limits)
    assert not agrees(right * 1.01, right, tolerance_for("fp32", "fp32"))
    assert tolerance_for("fp32", "bf16") == limits
    damaged = right.clone()
    damaged[:, 3, 5] = 0
    big = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    spot = big.clone()
    spot[:, 30, 7] = 0
    assert relative_difference(spot, big) < limits.difference
    assert not agrees(spot, big, limits)
    assert "row 30, column 7" in diagnose(spot, big, lambda: big.flip(2), limits)
    assert not agrees(damaged, right, limits)


def test_a_flat_images_latent_is_not_blamed_for_rounding() -> None:
    right = torch.full((32, 4, 4), 0.001)
    assert agrees(right + 0.0005, right, tolerance_for("fp32", "fp32"))


def test_odd_statistics_are_a_warning(copy: Path) -> None:
    def index(mean: float, std: float) -> dict[str, Any]:
        return {"statistics": {"mean": [mean, -mean], "std": [std, std]}, "latent": {"scaling_factor": 0.3}}

    assert check_statistics(index(0.1, 1.1)) == []
    assert "standard deviation is 3.2" in check_statistics(index(0.5, 3.2))[0]
    assert "standard deviation is 0.3," in check_statistics(index(0.0, 0.3))[0]
    assert "channels 0, 1" in check_statistics(index(1.0, 0.0))[0]
    assert check_statistics({"statistics": {"mean": [], "std": []}}) == []
    for part in ("part-000000", "part-000001", "part-000002"):
        falsify(copy, part, lambda tensors: [tensor.mul_(4) for tensor in tensors.values()])
    result = verify(copy, integrity_only=True)
    assert result.ok
    assert "or the wrong scale" in result.warnings[0]


def test_thresholds_name_the_worst(cache: Path) -> None:
    fine = verify(cache)
    assert fine.mean is not None
    assert verify(cache, min_psnr=fine.mean.psnr - 0.01, min_ssim=fine.mean.ssim - 0.001).ok
    (finding,) = verify(cache, min_ssim=fine.mean.ssim + 0.001).findings
    assert "mean SSIM" in finding.what
    assert f"worst: {fine.ranked[0]}" in finding.what
    assert fine.checked[fine.ranked[0]].scores.psnr == min(scores.psnr for scores in fine.scores.values())
    assert all(math.isfinite(scores.psnr) for scores in fine.scores.values())


def test_what_is_found_does_not_depend_on_the_number_of_cores(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches under way beside each other are told of in their order, with the same scores and the same findings."""
    falsify(copy, PART, swap)
    results = []
    for cores in (1, 3):
        monkeypatch.setattr(round_trip, "default_workers", lambda cores=cores: cores)
        results.append(verify(copy))
    one, three = results
    assert list(one.checked) == list(three.checked)
    assert one.scores == three.scores
    assert [(finding.where, finding.what) for finding in one.findings] == [
        (finding.where, finding.what) for finding in three.findings
    ]
    assert len(one.findings) == 2


def test_an_error_in_the_decoder_stops_the_run(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise ModelError("the decoder gives NaN")

    monkeypatch.setattr("dcae_cache.decode.cache_model.CacheModel.decode", fail)
    with pytest.raises(ModelError, match="the decoder gives NaN"):
        verify(copy)
