"""Several sizes and crops of every image in one run: the latents, the rows, and that they follow from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcae_cache.cache.index import load_index
from dcae_cache.cache.parts import read_rows, table_path
from dcae_cache.cache.recipe import ModelIdentity, config_of, fingerprint, recipe_changes, recipe_of
from dcae_cache.config import EncodeConfig, RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.encode.preview import preview_dataset
from dcae_cache.encode.progress import Progress
from dcae_cache.encode.summary import Summary
from dcae_cache.images import pixels as pixels_module
from dcae_cache.reader.dataset import LatentDataset
from helpers.faults import hashes
from helpers.images import encoded_image, make_folder, tiny_config

SIDES = (32, 64, 96)
MODEL = ModelIdentity("m", None, None, "f" * 64, 32, 32, 0.5)


def encode(source: Path, out: Path, options: dict[str, Any] | None = None, **recipe: Any) -> Summary:
    settings = {"device": "cpu", "workers": 2, "part_size": 4, "batch_size": 3} | (options or {})
    config = tiny_config(**{"bucket_step": None, "resolutions": SIDES} | recipe)
    return encode_dataset(source, out, config, RunOptions(**settings))


def rows(cache: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([read_rows(cache, part["name"]) for part in load_index(cache)["parts"]]).to_pylist()


def parts(cache: Path) -> dict[str, str]:
    return {name: value for name, value in hashes(cache).items() if name.startswith("parts")}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("few"), 6)


@pytest.fixture(scope="module")
def several(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "latents"
    summary = encode(few, out)
    assert (summary.num_images, summary.num_samples, summary.left_out) == (6, 18, 0)
    return out


def test_each_size_has_the_latents_of_a_run_of_its_own(few: Path, several: Path, tmp_path: Path) -> None:
    together = {sample["key"]: sample for sample in LatentDataset(several, columns=("key", "image", "resolution"))}
    assert len(together) == 18
    for side in SIDES:
        encode(few, tmp_path / str(side), resolutions=(), resolution=side)
        alone = LatentDataset(tmp_path / str(side), columns=("key",))
        for sample in alone:
            found = together[f"{sample['key']}@{side}"]
            assert (found["image"], found["resolution"]) == (sample["key"], side)
            assert np.array_equal(found["latents"].numpy(), sample["latents"].numpy())


def test_an_image_is_read_and_decoded_once(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, decoded = [], []
    plain_open, plain_flat = pixels_module.open_whole, pixels_module.flatten
    monkeypatch.setattr(pixels_module, "open_whole", lambda *args: (opened.append(1), plain_open(*args))[1])
    monkeypatch.setattr(pixels_module, "flatten", lambda image: (decoded.append(1), plain_flat(image))[1])
    encode(few, tmp_path / "out", crops=2)
    assert (len(opened), len(decoded)) == (6, 6)


def test_rows_of_an_image_follow_one_another_and_say_what_they_are(several: Path) -> None:
    table = rows(several)
    assert [(row["image"], row["resolution"]) for row in table] == [
        (image, side) for image in dict.fromkeys(row["image"] for row in table) for side in SIDES
    ]
    assert {row["crop"] for row in table} == {None}
    index = load_index(several)
    assert index["recipe"]["resolutions"] == {"32": 32, "64": 32, "96": 32}
    assert (index["totals"]["num_images"], index["totals"]["num_left_out"]) == (6, 0)
    assert json.loads((several / "ledger.json").read_text())["total"]["samples"] == 6


def test_an_interrupted_run_goes_on_to_the_same_bytes(few: Path, several: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    heard: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        heard.append(progress)
        if progress.done > 12:
            raise KeyboardInterrupt

    config = tiny_config(bucket_step=None, resolutions=SIDES)
    options = RunOptions(device="cpu", workers=2, part_size=4, batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(few, out, config, options, progress=interrupt)
    assert len(list((out / "parts").glob("*.parquet"))) == 1
    (out / "parts" / "part-000001.safetensors").write_bytes(b"a shard that a killed run left without its table")
    last: list[Progress] = []
    encode_dataset(few, out, config, options, progress=last.append)
    assert (last[0].total, last[0].done) == (18, 12)
    assert (last[-1].total, last[-1].done) == (18, 18)
    assert hashes(out) == hashes(several)


def test_two_processes_and_other_workers_give_the_same_bytes(few: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    encode(few, one, crops=2, resolutions=(32, 64))
    summary = encode(few, two, {"num_processes": 2, "workers": 4}, crops=2, resolutions=(32, 64))
    assert summary.num_processes == 2
    assert parts(one) == parts(two)


def test_crops_do_not_depend_on_parts_or_batches(few: Path, tmp_path: Path) -> None:
    encode(few, tmp_path / "a", crops=3, resolutions=(), resolution=64, bucket="square")
    encode(
        few, tmp_path / "b", {"part_size": 6, "batch_size": 1}, crops=3, resolutions=(), resolution=64, bucket="square"
    )
    one, other = (
        {sample["key"]: sample for sample in LatentDataset(tmp_path / name, columns=("key", "crop_top", "crop_left"))}
        for name in "ab"
    )
    assert one.keys() == other.keys()
    assert {key.rpartition("@")[2] for key in one} == {"c0", "c1", "c2"}
    for key, sample in one.items():
        assert (sample["crop_top"], sample["crop_left"]) == (other[key]["crop_top"], other[key]["crop_left"])
        assert np.allclose(sample["latents"].numpy(), other[key]["latents"].numpy(), atol=1e-4)
    assert len({(row["crop_top"], row["crop_left"]) for row in rows(tmp_path / "a")}) > 6


def test_sizes_that_images_are_too_small_for_are_counted(tmp_path: Path) -> None:
    source, out = tmp_path / "photos", tmp_path / "out"
    source.mkdir()
    for name, side in (("large", 100), ("middle", 70), ("tiny", 20), ("middle@64", 20)):
        (source / f"{name}.jpg").write_bytes(encoded_image(side, side))
    (source / "middle.txt").write_text("a caption")
    recipe = {"bucket": "square", "max_upscale": 1.0}
    config = tiny_config(bucket_step=None, resolutions=SIDES, **recipe)
    preview = preview_dataset(str(source), config, RunOptions(device="cpu", part_size=4, batch_size=3))
    summary = encode(source, out, **recipe)
    assert (summary.num_images, summary.num_samples, summary.left_out) == (4, 5, 1)
    assert summary.skipped == {"upscale_limit": 2}
    assert {row["key"]: row["status"] for row in rows(out)} == {
        **dict.fromkeys(("large@32", "large@64", "large@96", "middle@32", "middle@64"), "ok"),
        **dict.fromkeys(("tiny@", "middle@64@"), "skipped"),
    }
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [row["key"] for row in skipped] == ["middle@64", "tiny"]
    assert (preview.left_out, preview.skipped, preview.num_samples) == (1, {"upscale_limit": 2}, 4)
    assert preview.buckets == load_index(out)["buckets"]
    ledger = summary.ledger
    assert (ledger["samples"], ledger["with_caption"], ledger["without_caption"]) == (4, 1, 3)
    assert preview.num_bytes == 4 * 32 * sum(side**2 for side in (1, 2, 3, 1, 2))
    again = encode(source, out, **recipe)
    assert (again.encoded, again.left_out, again.parts_reused) == (0, 1, 1)


@pytest.mark.parametrize("crops", [0, 2])
def test_latents_of_renamed_images_are_copied_where_their_crops_stay(tmp_path: Path, crops: int) -> None:
    source, out = make_folder(tmp_path / "photos", 3), tmp_path / "out"
    recipe = {"resolutions": (32, 64), "bucket": "square", "crops": crops}
    encode(source, out, **recipe)
    (source / "class0" / "img000.jpg").rename(source / "class0" / "renamed.jpg")
    (source / "class1" / "img001.txt").write_text("a new caption")
    summary = encode(source, out, {"prune": True}, **recipe)
    of_one = 2 * max(crops, 1)
    kept = 2 * of_one  # of the other two images, whose part is made anew
    assert (summary.copied, summary.encoded) == ((kept + of_one, 0) if not crops else (kept, of_one))
    encode(source, tmp_path / "fresh", **recipe)
    latents = [
        {sample["key"]: sample["latents"] for sample in LatentDataset(cache, columns=("key",))}
        for cache in (out, tmp_path / "fresh")
    ]
    assert latents[0].keys() == latents[1].keys()
    assert all(np.array_equal(latent.numpy(), latents[1][key].numpy()) for key, latent in latents[0].items())
    assert {row["caption"] for row in rows(out) if row["image"] == "class1/img001"} == {"a new caption"}
    encode(source, out, {"refresh_metadata": True}, **recipe)
    assert encode(source, out, {"recheck": True}, **recipe).encoded == 0


def test_a_latent_of_one_size_that_is_refused_is_a_row_of_that_size(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcae_cache.models.latent_encoder.MAX_MAGNITUDE", 0.0)
    with pytest.raises(Exception, match="All 6 samples"):
        encode(few, tmp_path / "out", {"limit": 2})
    assert [row["key"].rpartition("@")[2] for row in rows(tmp_path / "out")] == ["32", "64", "96"] * 2
    assert {row["reason"] for row in rows(tmp_path / "out")} == {"out_of_range"}


def test_a_cache_of_one_size_is_what_it_was(few: Path, tmp_path: Path) -> None:
    """Recipe, fingerprint, columns and what tables say of themselves, as the first release writes them."""
    plain = recipe_of(EncodeConfig(model="f32c32-mix"), MODEL)
    assert "resolutions" not in plain
    assert "crops" not in plain
    assert fingerprint(plain) == "e8bf092fd2fd069a78115dfd7e9ac895a045e7148799a5a1efe225c717b49490"
    encode(few, tmp_path / "out", resolutions=(), resolution=64)
    schema = pq.read_schema(table_path(tmp_path / "out", "part-000000"))
    assert schema.names[-2:] == ["source_bytes", "source_hash"]
    assert len(schema.names) == 20
    assert {name.decode().removeprefix("dcae_cache.") for name in schema.metadata} >= {"format", "version", "buckets"}
    assert b"dcae_cache.views" not in schema.metadata
    assert set(load_index(tmp_path / "out")["totals"]) == {"num_parts", "num_samples", "num_skipped", "num_bytes"}


@pytest.mark.parametrize(
    "settings",
    [
        {"resolutions": (256, 512, 2048)},
        {"resolutions": (256, 512), "bucket_step": 64, "crops": 2, "crop_seed": 5},
        {"resolutions": (256, 512), "bucket": "kohya"},
        {"crop": "random"},
    ],
)
def test_recipes_of_several_views_come_back(settings: dict[str, Any]) -> None:
    config = EncodeConfig(**settings)
    recipe = json.loads(json.dumps(recipe_of(config, MODEL)))
    assert config_of(recipe).fitting(32) == config.fitting(32)
    assert recipe_changes(recipe, recipe_of(config_of(recipe), MODEL)) == []
    assert fingerprint(recipe) != fingerprint(recipe_of(EncodeConfig(resolution=config.resolution), MODEL))
