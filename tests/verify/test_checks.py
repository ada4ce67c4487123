"""verify finds what is wrong with a cache and says which command mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage.metrics import mean_squared_error
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dcae_cache import DCAE, LatentDataset
from dcae_cache.cache.index import load_index, save_index
from dcae_cache.cache.integrity import check_integrity
from dcae_cache.cache.parts import shard_path, table_path
from dcae_cache.compute.ranges import to_uint8
from dcae_cache.decode.cache_model import CacheModel
from dcae_cache.errors import CacheError, ModelError, VerificationError
from dcae_cache.images.pixels import load_pixels
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.false_caches import rewrite
from helpers.images import encode, encoded_image, make_folder, tiny_config


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """A cache that a test may damage."""
    return Path(shutil.copytree(cache, tmp_path / "copy"))


def check(cache: Path, **options: object) -> list[str]:
    options = {"device": "cpu", "samples": None} | options
    return [str(finding) for finding in verify_cache(cache, VerifyOptions(**options)).findings]


def test_a_whole_cache_passes(cache: Path) -> None:
    result = verify_cache(cache, VerifyOptions(device="cpu", samples=None))
    assert result.ok
    assert len(result.scores) == 20
    assert result.mean is not None
    assert result.mean.psnr > 18
    assert max(checked.difference for checked in result.checked.values()) < 1e-5  # batches of other sizes
    assert result.warnings == []
    assert len(result.ranked) == 20


def test_scores_are_those_of_plain_python(photos: Path, cache: Path) -> None:
    """Decode by hand, score with torchmetrics and skimage: the same numbers. (In the same batches: one of
    another size changes a pixel here and there by one level.)"""
    scores = verify_cache(cache, VerifyOptions(device="cpu", samples=4)).scores
    ae = DCAE("f32c32-tiny", device="cpu")
    batches: dict[torch.Size, dict[str, torch.Tensor]] = {}
    for sample in LatentDataset(cache, raw=True):
        if sample["key"] in scores:
            batches.setdefault(sample["latents"].shape, {})[sample["key"]] = sample["latents"]
    decoded = {
        key: image
        for batch in batches.values()
        for key, image in zip(batch, to_uint8(ae.decode(torch.stack(list(batch.values())))), strict=True)
    }
    assert len(decoded) == 4
    for key, ours in decoded.items():
        data = load_pixels((photos / f"{key}.jpg").read_bytes(), tiny_config().bucket_rule(32), 10**9).data
        image = torch.from_numpy(data).permute(2, 0, 1)
        a, b, found = ours[None].float(), image[None].float(), scores[key]
        assert found.mse == pytest.approx(mean_squared_error(ours.numpy(), image.numpy()), rel=1e-6)
        assert found.psnr == pytest.approx(
            peak_signal_noise_ratio(a.double(), b.double(), data_range=255.0).item(), abs=1e-6
        )
        assert found.ssim == pytest.approx(
            structural_similarity_index_measure(a.double(), b.double(), data_range=255.0).item(), abs=1e-9
        )


def test_a_flipped_byte_is_found_wherever_it_is(copy: Path) -> None:
    for path in (shard_path(copy, "part-000001"), table_path(copy, "part-000000")):
        data = bytearray(path.read_bytes())
        for place in (9, len(data) // 2, len(data) - 1):
            data[place] ^= 1
            path.write_bytes(data)
            found = [str(finding) for finding in check_integrity(copy)]
            assert any(path.stem in line and "same encode command" in line for line in found)
            data[place] ^= 1
        path.write_bytes(data)
    assert check_integrity(copy) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda tensors: next(iter(tensors.values())).mul_(1.01), "sums per channel"),
        (lambda tensors: next(iter(tensors.values()))[0].fill_(float("nan")), "NaN or Inf"),
        (lambda tensors: tensors.pop(next(iter(tensors))), "its table says"),
        (lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}), "expected torch.float32"),
    ],
)
def test_contents_are_checked_even_where_hashes_agree(
    copy: Path, change: Callable[[dict[str, torch.Tensor]], None], found: str
) -> None:
    rewrite(copy, "part-000001", change)
    assert any(found in str(finding) and "part-000001" in str(finding) for finding in check_integrity(copy))


@pytest.mark.parametrize("name", ["part-000000.parquet", "part-000001.safetensors"])
def test_a_missing_file_is_found(copy: Path, name: str) -> None:
    (copy / "parts" / name).unlink()
    assert any(name.split(".")[0] in line and "missing" in line for line in check(copy, integrity_only=True))


def test_strangers_and_gaps_are_found(copy: Path) -> None:
    shutil.copy(shard_path(copy, "part-000000"), shard_path(copy, "part-000009"))
    index = load_index(copy)
    index["parts"].pop()
    save_index(copy, index)
    found = "\n".join(check(copy, integrity_only=True))
    assert "part-000009: on disk, but not in index.json" in found
    assert "part-000002: planned, but not finished" in found
    assert "num_samples is 20, its parts add up to 16" in found


def test_changed_statistics_are_found(copy: Path) -> None:
    index = load_index(copy)
    index["statistics"]["mean"][3] += 1e-9
    save_index(copy, index)
    assert any("mean and std" in line for line in check(copy, integrity_only=True))


def test_a_changed_or_missing_source_is_named(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 6)
    encode(source, tmp_path / "out")
    (source / "class0/img000.jpg").write_bytes(encoded_image(300, 200, seed=5))
    (source / "class1/img001.jpg").unlink()
    found = check(tmp_path / "out")
    assert any("class0/img000" in line and "changed" in line for line in found)
    assert any("class1/img001" in line and "not in the source" in line for line in found)
    assert len(found) == 2


def test_a_moved_source_can_be_named(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 3)
    encode(source, tmp_path / "out")
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(VerificationError, match="`source`"):
        check(tmp_path / "out")
    assert check(tmp_path / "out", source=str(tmp_path / "elsewhere")) == []
    assert check(tmp_path / "out", integrity_only=True) == []


def test_swapped_pictures_fail_the_threshold(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number, color in enumerate(("black", "white")):
        Image.new("RGB", (128, 128), color).save(source / f"{number}.png")
    encode(source, tmp_path / "out")
    assert check(tmp_path / "out", min_psnr=20.0) == []

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        tensors["latents.4x4"] = tensors["latents.4x4"].flip(0)

    rewrite(tmp_path / "out", "part-000000", swap)
    found = check(tmp_path / "out", min_psnr=20.0)
    assert any("mean PSNR" in line and "worst: " in line for line in found)


def test_another_model_is_refused(copy: Path) -> None:
    with pytest.raises(ModelError):
        check(copy, model="nonsense")
    index = load_index(copy)
    index["model"]["weights_sha256"] = "0" * 64
    with pytest.raises(VerificationError, match="is not the model of this cache"):
        CacheModel(index, torch.device("cpu"))
    save_index(copy, index)
    assert any("weights_sha256" in line for line in check(copy))  # it is not its recipe's


@pytest.mark.parametrize("content", ["", "{}", "[]", "\0"])
def test_a_damaged_index_is_a_finding_that_encode_mends(copy: Path, content: str) -> None:
    (copy / "index.json").write_text(content)
    report = verify_cache(copy, VerifyOptions(integrity_only=True))
    (finding,) = report.findings
    assert "index.json" in finding.what
    assert "run the same encode command again" in str(finding)


def test_an_index_of_another_version_is_an_error(copy: Path) -> None:
    (copy / "index.json").write_text(json.dumps({"format": "dcae-cache", "version": 99}))
    with pytest.raises(CacheError, match="version 99; this release reads version 1"):
        check(copy)
