"""`decode` writes what `DCAE.decode` gives, under names that stay below the folder asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_cache import DCAE, LatentDataset
from dcae_cache.cache.index import load_index, save_index
from dcae_cache.compute.ranges import to_uint8
from dcae_cache.decode.image_files import DecodeOptions, decode_samples, file_of
from dcae_cache.errors import CacheError, UsageError, VerificationError
from helpers.command import run
from helpers.images import encode, make_folder

CPU = DecodeOptions(device="cpu")


def expected(cache: Path, key: str) -> torch.Tensor:
    (latents,) = [sample["latents"] for sample in LatentDataset(cache, raw=True) if sample["key"] == key]
    return to_uint8(DCAE("f32c32-tiny", "cpu").decode(latents[None]))[0]


def test_files_hold_what_the_latents_decode_to(cache: Path, tmp_path: Path) -> None:
    keys = ["class2/img005", "class0/img003", "class1/img004"]
    heard: list[tuple[int, int]] = []
    files = decode_samples(cache, keys, tmp_path, CPU, lambda done, total: heard.append((done, total)))
    assert sorted(files) == sorted(tmp_path / f"{key}.png" for key in keys)
    assert heard == [(1, 3), (2, 3), (3, 3)]
    for key in keys:
        found = np.asarray(Image.open(tmp_path / f"{key}.png")).astype(int)
        assert np.abs(found - expected(cache, key).permute(1, 2, 0).numpy()).max() <= 1  # of other batches
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == []


def test_patterns_and_formats(cache: Path, tmp_path: Path) -> None:
    files = decode_samples(cache, ["class1/*", "class0/img000"], tmp_path, DecodeOptions(format="jpg", device="cpu"))
    assert len(files) == 8
    with Image.open(tmp_path / "class0/img000.jpg") as image:
        assert image.format == "JPEG"
    assert len(decode_samples(cache, ["*"], tmp_path / "all", DecodeOptions(format="webp", device="cpu"))) == 20


def test_mirrored_latents(tmp_path: Path) -> None:
    encode(make_folder(tmp_path / "photos", 2), tmp_path / "out", flip=True)
    (plain,) = decode_samples(tmp_path / "out", ["class0/img000"], tmp_path / "a", CPU)
    (mirrored,) = decode_samples(
        tmp_path / "out", ["class0/img000"], tmp_path / "b", DecodeOptions(flipped=True, device="cpu")
    )
    first, second = (np.asarray(Image.open(path)).astype(int) for path in (plain, mirrored))
    assert np.abs(first[:, ::-1] - second).mean() < np.abs(first - second).mean() / 2


def test_what_is_not_there_is_named_and_nothing_is_written(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CacheError, match=r"no latents of 'nobody' \(and 1 more\)"):
        decode_samples(cache, ["class0/img000", "nobody", "none*"], out, CPU)
    with pytest.raises(CacheError, match="are made by encode --flip"):
        decode_samples(cache, ["class0/img000"], out, DecodeOptions(flipped=True))
    with pytest.raises(UsageError, match="`format` is one of png, jpg, webp"):
        DecodeOptions(format="gif")
    with pytest.raises(CacheError, match="not a finished cache"):
        decode_samples(tmp_path, ["a"], out, CPU)
    assert not out.exists()


def test_files_that_are_there_stay(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "class0").mkdir()
    mine = tmp_path / "class0/img000.png"
    mine.write_text("mine")
    with pytest.raises(UsageError, match=r"img000\.png is there already \(1 files in all\)"):
        decode_samples(cache, ["class0/*"], tmp_path, CPU)
    assert mine.read_text() == "mine"
    assert len(list(tmp_path.rglob("*.png"))) == 1
    decode_samples(cache, ["class0/img000"], tmp_path, DecodeOptions(overwrite=True, device="cpu"))
    with Image.open(mine) as image:
        assert image.width % 32 == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"Can't write .*/file/class0"):
        decode_samples(cache, ["class0/img000"], tmp_path / "file", CPU)


def test_another_model_is_refused(cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    index = load_index(copy)
    index["model"]["weights_sha256"] = "0" * 64
    save_index(copy, index)
    with pytest.raises(VerificationError, match="is not the model of this cache"):
        decode_samples(copy, ["class0/img000"], tmp_path / "out", CPU)


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..", "a//b", "", "C:\\x", "a\x00b", "n" * 400, "é" * 150]
)
def test_no_key_leads_out_of_the_folder(key: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, key, "png")
    assert tmp_path in path.resolve().parents
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    assert path != file_of(tmp_path, key + "x", "png")


def test_keys_that_need_changing_never_share_a_file(tmp_path: Path) -> None:
    keys = ["a:b", "a?b", "a_b", "a//b", "a/b", "./a/b", "x/..", "x/_"]
    assert len({file_of(tmp_path, key, "png") for key in keys}) == len(keys)
    assert file_of(tmp_path, "a/b.c", "png") == tmp_path / "a/b.c.png"


def test_the_command(cache: Path, tmp_path: Path) -> None:
    done = run("decode", cache, "--out", tmp_path, "class0/img00*", "--json")
    assert len(json.loads(done.stdout)["files"]) == 4
    again = run("decode", cache, "--out", tmp_path, "class0/img000", expect=2)
    assert again.stderr.startswith("error: ")
