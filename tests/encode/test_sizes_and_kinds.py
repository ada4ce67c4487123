"""Odd sizes and kinds of images through a whole encode, and what the dry run says of them."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_cache.cache import recipe
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.encode.preview import Preview, preview_dataset
from dcae_cache.errors import RecipeMismatchError
from dcae_cache.images.crops import FitTally
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.images import encode, make_folder, make_image, tiny_config

OPTIONS = RunOptions(device="cpu", workers=2)


def preview(folder: Path, **settings: object) -> Preview:
    return preview_dataset(str(folder), tiny_config(**settings), OPTIONS)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_images_one_latent_cell_wide_are_encoded(tmp_path: Path, dtype: str) -> None:
    sizes = {"wide": (32, 96), "tall": (96, 32), "cell": (32, 32), "tall2": (97, 40)}
    (tmp_path / "in").mkdir()
    for number, (name, (height, width)) in enumerate(sizes.items()):
        make_image(height, width, number).save(tmp_path / "in" / f"{name}.png")
    encode(tmp_path / "in", tmp_path / "out", bucket="native", dtype=dtype)
    dataset = LatentDataset(tmp_path / "out", columns=("key",))
    shapes = {sample["key"]: tuple(sample["latents"].shape) for sample in dataset}
    assert shapes == {"wide": (32, 1, 3), "tall": (32, 3, 1), "cell": (32, 1, 1), "tall2": (32, 3, 1)}
    latents = {sample["key"]: sample["latents"] for sample in dataset}
    assert not torch.equal(latents["tall"], latents["tall2"])
    report = verify_cache(tmp_path / "out", VerifyOptions(device="cpu"))
    assert not report.findings


def test_own_sizes_are_the_only_ones(tmp_path: Path) -> None:
    encode(make_folder(tmp_path / "in", 6), tmp_path / "out", buckets=("128x64", "64x128"))
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert set(index["buckets"]) == {"128x64", "64x128"}
    assert index["recipe"]["buckets"] == ["64x128", "128x64"]
    assert not verify_cache(tmp_path / "out", VerifyOptions(device="cpu")).findings


def test_the_dry_run_turns_what_the_encode_turns(tmp_path: Path) -> None:
    """EXIF behind the pixels of a PNG."""
    (tmp_path / "in").mkdir()
    make_image(64, 128).save(tmp_path / "in" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = (tmp_path / "in" / "a.png").read_bytes()
    end = data.index(b"IEND") - 4
    (tmp_path / "in" / "a.png").write_bytes(data[:end] + chunk + data[end:])
    found = preview(tmp_path / "in", bucket="native")
    encode(tmp_path / "in", tmp_path / "out", bucket="native")
    made = json.loads((tmp_path / "out" / "index.json").read_text())
    assert found.buckets == made["buckets"] == {"128x64": 1}


def test_the_dry_run_says_what_is_cropped_and_enlarged(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, (height, width) in enumerate([(128, 128)] * 8 + [(128, 256), (64, 64)]):
        make_image(height, width).save(tmp_path / "in" / f"{number}.png")
    found = preview(tmp_path / "in", bucket="square")
    assert found.cropped_mean == pytest.approx(0.05)
    assert found.cropped_p90 == 0.0
    assert (found.enlarged, found.enlarged_most) == (1, 2.0)
    assert preview(tmp_path / "in", bucket="native").cropped_mean == 0


def test_a_tally_of_crops() -> None:
    tally = FitTally()
    assert (tally.mean_cropped, tally.p90_cropped) == (0.0, 0.0)
    for number in range(100):
        tally.add(number / 100, 0.5 + number / 100)
    assert tally.mean_cropped == pytest.approx(0.495)
    assert tally.p90_cropped == pytest.approx(0.89)
    assert (tally.num_enlarged, tally.largest_enlargement) == (49, 1.49)


def test_kinds_that_are_not_read_are_named_by_the_dry_run(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 2)
    (folder / "a.jpg").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n")
    (folder / "b.png").write_bytes(b"8BPS\0\1")
    (folder / "c.png").write_bytes(b"8BPS\0\1")
    found = preview(folder)
    assert found.skipped == {"unsupported": 3}
    assert found.unsupported == {
        "Photoshop is not read here; convert it first": 2,
        "JPEG 2000 is not read here; convert it first": 1,
    }


def test_a_cache_of_older_image_rules_is_verified_by_them_and_not_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "in", 6)
    with monkeypatch.context() as older:
        older.setattr(recipe, "IMAGE_RULES_VERSION", 1)
        encode(folder, tmp_path / "out", resolution=256, bucket_step=64)
    assert not verify_cache(tmp_path / "out", VerifyOptions(device="cpu")).findings
    before = (tmp_path / "out" / "index.json").read_bytes()
    for step, named in ((64, r"image_rules_version: 1 -> 2\."), (None, "bucket_step: 64 -> 32")):
        with pytest.raises(RecipeMismatchError, match=named) as refused:
            encode_dataset(folder, tmp_path / "out", tiny_config(resolution=256, bucket_step=step), OPTIONS)
        assert "the release that began it" in str(refused.value)
    assert (tmp_path / "out" / "index.json").read_bytes() == before


def test_a_new_default_does_not_mix_with_the_old_step(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 4)
    encode(folder, tmp_path / "out", resolution=256, bucket_step=64)
    with pytest.raises(RecipeMismatchError, match=r"bucket_step: 64 -> 32\..*Use the old settings"):
        encode_dataset(folder, tmp_path / "out", tiny_config(resolution=256, bucket_step=None), OPTIONS)
    again = encode_dataset(folder, tmp_path / "out", tiny_config(resolution=256, bucket_step=64), OPTIONS)
    assert again.encoded == 0


def test_kinds_of_the_extras_are_found_in_a_folder_and_encoded(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pytest.importorskip("pillow_jxl")
    folder = make_folder(tmp_path / "in", 1)
    pillow_heif.from_pillow(make_image(128, 128, 1)).save(folder / "a.HEIC")
    make_image(128, 128, 2).save(folder / "b.jxl")
    for number, suffix in enumerate((".jfif", ".mpo", ".jpe", ".JPG")):
        make_image(128, 128, 3 + number).save(folder / f"c{number}{suffix}", "JPEG")
    make_image(128, 128, 9).save(folder / "d.apng", "PNG")
    assert encode(folder, tmp_path / "out").encoded == 8
    keys = {sample["key"] for sample in LatentDataset(tmp_path / "out", columns=("key",))}
    assert {"a", "b", "c0", "c1", "c2", "c3", "d"} < keys
    assert np.isfinite(LatentDataset(tmp_path / "out")[0]["latents"].float().numpy()).all()
