"""A cache of several sizes and crops of each image, in everything that is done with caches."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dcae_cache.cache.finalize import finalize_cache
from dcae_cache.cache.index import load_index
from dcae_cache.cache.integrity import check_integrity
from dcae_cache.cache.parts import read_part_info, read_rows, write_table
from dcae_cache.config import RunOptions
from dcae_cache.curate.annotate import annotate_cache
from dcae_cache.curate.choices import filter_cache, merge_caches, split_cache
from dcae_cache.decode.image_files import DecodeOptions, decode_samples
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.errors import UsageError
from dcae_cache.export.exporter import ExportOptions
from dcae_cache.export.run import export_cache
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.reader.mixing import MixedDataset
from dcae_cache.reader.sampler import BucketBatchSampler
from dcae_cache.reader.selection import Selection
from dcae_cache.records import Row
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.command import run
from helpers.images import make_folder, tiny_config

COLUMNS = ("key", "image", "resolution", "crop")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("source"), 9)


@pytest.fixture(scope="module")
def cache(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 images at 32 and 64 pixels, two crops of each: 36 latents in squares, in 3 parts. Read only."""
    out = tmp_path_factory.mktemp("views") / "latents"
    config = tiny_config(resolutions=(32, 64), crops=2, bucket="square")
    encode_dataset(source, out, config, RunOptions(device="cpu", workers=2, part_size=4, batch_size=4))
    return out


def drawn(selection: Selection, epoch: int, seed: int = 0) -> list[int]:
    sampler = BucketBatchSampler(selection, 4, seed=seed, rank_and_world_size=(0, 1))
    sampler.set_epoch(epoch)
    return sorted(number for batch in sampler for number in batch)


def test_it_is_whole_and_its_latents_are_those_of_its_images(cache: Path) -> None:
    report = verify_cache(cache, VerifyOptions(samples=13, device="cpu"))
    assert report.findings == []
    assert len(report.checked) == 13
    assert all(checked.difference < 1e-3 for checked in report.checked.values())


def test_a_crop_moved_in_the_table_is_found(cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    info = read_part_info(copy, "part-000000")
    assert info is not None
    rows = [Row(**values) for values in read_rows(copy, "part-000000").to_pylist()]
    moved = next(place for place, row in enumerate(rows) if (row.crop_top or 0) > 0)
    rows[moved] = replace(rows[moved], crop_top=0)
    write_table(copy, info, rows)
    assert {finding.where for finding in check_integrity(copy)} >= {"part-000000"}  # the hash of the table
    finalize_cache(copy)
    report = verify_cache(copy, VerifyOptions(samples=None, device="cpu"))
    assert [finding.where for finding in report.findings] == [rows[moved].key]
    assert "by the recipe, recorded" in report.findings[0].what


def test_conditions_choose_sizes_and_crops(cache: Path) -> None:
    dataset = LatentDataset(cache, columns=COLUMNS)
    chosen = Selection(dataset).where("resolution == 64 and crop == 0")
    samples = [dataset.describe(int(number)) for number in chosen.numbers]
    assert {(sample["resolution"], sample["crop"]) for sample in samples} == {(64, 0)}
    assert len({sample["image"] for sample in samples}) == 9
    assert len(Selection(dataset).where("image == 'class0/img000'")) == 4


def test_one_of_each_image_comes_in_an_epoch(cache: Path) -> None:
    dataset = LatentDataset(cache, columns=COLUMNS)
    one = Selection(dataset).one_per_image()
    seen: Counter[int] = Counter()
    for epoch in range(40):
        numbers = drawn(one, epoch)
        assert len({dataset.describe(number)["image"] for number in numbers}) == len(numbers) == 9
        seen.update(numbers)
    assert len(seen) == 36
    assert min(seen.values()) >= 2
    assert drawn(one, 3) == drawn(Selection(dataset).one_per_image(), 3)
    assert drawn(one, 3) != drawn(one, 3, seed=1)
    large = one.where("resolution == 64")
    assert {dataset.describe(number)["resolution"] for number in drawn(large, 0)} == {64}
    assert len(drawn(large, 0)) == 9
    assert len(drawn(large.repeated(2), 0)) == 18
    assert one.identity() != Selection(dataset).identity()


def test_ranks_and_states_agree_on_the_ones_that_come(cache: Path) -> None:
    one = Selection(LatentDataset(cache, columns=())).one_per_image()
    alone = [number for batch in BucketBatchSampler(one, 2, rank_and_world_size=(0, 1)) for number in batch]
    first = BucketBatchSampler(one, 2, rank_and_world_size=(0, 1))
    taken = next(iter(first))
    second = BucketBatchSampler(one, 2, rank_and_world_size=(0, 1))
    second.load_state_dict(first.state_dict())
    assert [*taken, *(number for batch in second for number in batch)] == alone
    with pytest.raises(UsageError, match="selection"):
        BucketBatchSampler(Selection(one.dataset), 2, rank_and_world_size=(0, 1)).load_state_dict(first.state_dict())


def test_a_cache_of_one_size_knows_its_resolution_and_mixes(source: Path, cache: Path, tmp_path: Path) -> None:
    config = tiny_config(resolution=96, bucket="square")
    encode_dataset(source, tmp_path / "one", config, RunOptions(device="cpu", workers=2))
    plain = LatentDataset(tmp_path / "one", columns=COLUMNS)
    assert plain.describe(0) == {"key": "class0/img000", "image": "", "resolution": 96, "crop": -1}
    mixed = MixedDataset([LatentDataset(cache, columns=COLUMNS), plain])
    assert len(Selection(mixed).where("resolution == 96")) == 9
    assert len(drawn(Selection(mixed).one_per_image(), 0)) == 9


def test_filtered_split_and_merged(cache: Path, tmp_path: Path) -> None:
    filter_cache(cache, tmp_path / "small", "resolution == 32")
    filter_cache(cache, tmp_path / "large", "resolution == 64 and crop == 1")
    assert set(load_index(tmp_path / "small")["buckets"]) == {"32x32"}
    assert load_index(tmp_path / "large")["totals"]["num_images"] == 9
    merge_caches([tmp_path / "small", tmp_path / "large"], tmp_path / "merged")
    for name in ("small", "large", "merged"):
        assert check_integrity(tmp_path / name) == []
    assert len(LatentDataset(tmp_path / "merged")) == 27
    split_cache(cache, [0.5, 0.5], tmp_path / "split")
    halves = [LatentDataset(tmp_path / "split" / str(number), columns=COLUMNS) for number in (0, 1)]
    images = [{sample["image"] for sample in half} for half in halves]
    assert images[0].isdisjoint(images[1])
    assert [len(half) for half in halves] == [4 * len(names) for names in images]


def test_annotated_by_the_key_of_the_image_or_of_one_sample(cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    table = tmp_path / "captions.csv"
    table.write_text("key,caption\nclass0/img000,of the image\nclass0/img000@64c1,of one crop\nnobody,x\n")
    summary = annotate_cache(copy, table, "caption")
    assert (summary.changed, summary.unmatched, summary.untold) == (4, 1, 32)
    captions = Counter(sample["caption"] for sample in LatentDataset(copy, columns=("caption",)))
    assert captions == {"": 32, "of the image": 3, "of one crop": 1}
    assert check_integrity(copy) == []
    assert json.loads((copy / "ledger.json").read_text())["total"]["with_caption"] == 1


def test_formats_of_one_size_name_the_condition_that_fits(cache: Path, tmp_path: Path) -> None:
    for name in ("npy", "edm2", "wids"):
        with pytest.raises(UsageError, match=r"`where` 'resolution == 64'"):
            export_cache(cache, name, tmp_path / name)
    chosen = ExportOptions(where="resolution == 64 and crop == 0")
    export_cache(cache, "npy", tmp_path / "npy", chosen)
    arrays = sorted((tmp_path / "npy").rglob("*.npy"))
    assert len(arrays) == 9
    assert {np.load(path).shape for path in arrays} == {(32, 2, 2)}
    export_cache(cache, "webdataset", tmp_path / "tars", ExportOptions(shard_size=100))
    with tarfile.open(tmp_path / "tars" / "00000.tar") as tar:
        found = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]  # type: ignore[arg-type]
    assert {(each["image"], each["resolution"], each["crop"]) for each in found} == {
        (row["image"], row["resolution"], row["crop"])
        for part in load_index(cache)["parts"]
        for row in read_rows(cache, part["name"]).to_pylist()
    }


def test_each_sample_is_decoded_to_a_file_of_its_own(cache: Path, tmp_path: Path) -> None:
    files = decode_samples(cache, ["class0/img000@*"], tmp_path, DecodeOptions(device="cpu"))
    assert sorted(file.name for file in files) == [f"img000@{side}c{crop}.png" for side in (32, 64) for crop in (0, 1)]


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    flags = ["--model", "f32c32-tiny", "--resolution", "64,32", "--crops", "2", "--crop-seed", "3", "--limit", "2"]
    preview = run("encode", str(source), "--out", out, *flags, "--dry-run")
    assert "8 latents of 2 of 2 images in 1 parts" in preview.stdout
    done = run("encode", str(source), "--out", out, *flags)
    assert "Encoded 8 latents in" in done.stderr
    assert "holds 8 latents of 2 images in 1 part" in done.stderr
    assert "resolutions 32, 64, 2 random crops an image" in run("info", out).stdout
    refused = run("encode", str(source), "--out", out, "--resolution", "32,64", "--bucket", "native", expect=2)
    assert "--resolution" in refused.stderr
    assert "--bucket" in refused.stderr
