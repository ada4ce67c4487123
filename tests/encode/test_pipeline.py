"""A whole run on a folder: right latents, every key once, resumable, and the same files however it got there."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from dcae_cache import DCAE, LatentDataset, encode_dataset
from dcae_cache.cache.index import load_index
from dcae_cache.cache.locks import locked
from dcae_cache.cache.parts import read_rows
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import Summary, carry_out
from dcae_cache.encode.progress import Listener
from dcae_cache.encode.run import Request, Run
from dcae_cache.errors import (
    CacheLockedError,
    DCAECacheError,
    RecipeMismatchError,
    SourceError,
    TooManySkippedError,
    UsageError,
)
from dcae_cache.images.pixels import load_fitted, load_pixels
from dcae_cache.loading.batches import load_batches
from dcae_cache.loading.rows import LoadSettings
from dcae_cache.models.latent_encoder import LatentEncoder
from dcae_cache.records import Part
from dcae_cache.sources import SourceOptions, open_source
from helpers.faults import hashes
from helpers.images import encode, encoded_image, make_folder, tiny_config


def rows(cache: Path) -> list[dict[str, object]]:
    return pa.concat_tables([read_rows(cache, part["name"]) for part in load_index(cache)["parts"]]).to_pylist()


def test_every_image_has_its_row_and_its_latent(photos: Path, cache: Path) -> None:
    table = rows(cache)
    expected = sorted(str(path.relative_to(photos).with_suffix("")) for path in photos.rglob("*.jpg"))
    assert [row["key"] for row in table] == expected
    assert {row["status"] for row in table} == {"ok"}
    assert {row["label"] for row in table} == {"class0", "class1", "class2"}
    assert len(LatentDataset(cache)) == 20


def test_every_latent_is_that_of_its_image_alone(photos: Path, cache: Path) -> None:
    ae = DCAE("f32c32-tiny", device="cpu", with_decoder=False)
    rule = tiny_config().bucket_rule(32)
    for sample in LatentDataset(cache):
        pixels = load_pixels((photos / f"{sample['key']}.jpg").read_bytes(), rule, 10**9)
        unit = torch.from_numpy(pixels.data).permute(2, 0, 1)[None].float() / 127.5 - 1
        alone = ae.encode(unit)[0] * ae.scaling_factor
        assert (sample["latents"] - alone).abs().max() < 1e-5 * alone.abs().max()


def test_the_same_run_gives_the_same_files(photos: Path, cache: Path, tmp_path: Path) -> None:
    options = RunOptions(device="cpu", workers=1, part_size=8, batch_size=3)
    encode_dataset(photos, tmp_path / "again", tiny_config(), options)
    assert hashes(tmp_path / "again") == hashes(cache)


def test_a_finished_cache_is_left_as_it_is(photos: Path, tmp_path: Path) -> None:
    encode(photos, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").iterdir()}
    summary = encode(photos, tmp_path / "out", batch_size=5)
    assert (summary.encoded, summary.device, summary.complete, summary.num_samples) == (0, None, True, 20)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").iterdir()} == before


def test_a_finished_cache_is_confirmed_without_its_model(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(photos, tmp_path / "out")

    def refuse(*_: object) -> None:
        raise AssertionError("the network was built")

    monkeypatch.setattr("dcae_cache.models.dcae.load_half", refuse)
    assert encode(photos, tmp_path / "out").complete


@pytest.mark.parametrize(
    "lost", ["part-000001.parquet", "part-000000.safetensors", "part-000002.*", "../index.json", "../skipped.jsonl"]
)
def test_what_is_missing_is_made_again(photos: Path, cache: Path, tmp_path: Path, lost: str) -> None:
    encode(photos, tmp_path / "out")
    for path in (tmp_path / "out" / "parts").glob(lost):
        path.unlink()
    encode(photos, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(cache)


@pytest.mark.parametrize("name", ["part-000001.parquet", "part-000001.safetensors"])
def test_a_cut_file_is_made_again(photos: Path, cache: Path, tmp_path: Path, name: str) -> None:
    encode(photos, tmp_path / "out")
    path = tmp_path / "out" / "parts" / name
    path.write_bytes(path.read_bytes()[:-7])
    encode(photos, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(cache)


def test_interrupted_and_run_again(photos: Path, cache: Path, tmp_path: Path) -> None:
    def stop_halfway(progress: object) -> None:
        if progress.done >= 10:
            raise KeyboardInterrupt

    options = RunOptions(device="cpu", workers=2, part_size=8, batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(photos, tmp_path / "out", tiny_config(), options, progress=stop_halfway)
    index = load_index(tmp_path / "out")
    assert (index["complete"], index["totals"]["num_parts"]) == (False, 1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("prefetch", "decode", "write"))]
    summary = encode(photos, tmp_path / "out")
    assert (summary.encoded, summary.parts_reused) == (12, 1)
    assert hashes(tmp_path / "out") == hashes(cache)


def test_new_changed_and_vanished_files(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 20)
    encode(source, tmp_path / "out")
    make_folder(source, 3, first=100)
    (source / "class0/img000.jpg").write_bytes(encoded_image(256, 256, seed=77))
    (source / "class2/img017.jpg").unlink()
    summary = encode(source, tmp_path / "out")
    # Three new ones in a part of their own, and the changed one; the seven beside it are copied.
    assert (summary.encoded, summary.copied, summary.vanished) == (4, 7, 1)
    assert (summary.num_parts, summary.num_samples) == (4, 23)
    by_key = {sample["key"]: sample["latents"] for sample in LatentDataset(tmp_path / "out")}
    encode(source, tmp_path / "fresh")
    for sample in LatentDataset(tmp_path / "fresh"):
        assert torch.allclose(by_key[sample["key"]], sample["latents"], atol=1e-5)


def test_flipped_latents_are_those_of_the_mirrored_image(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 3)
    encode(source, tmp_path / "out", flip=True)
    ae = DCAE("f32c32-tiny", device="cpu", with_decoder=False)
    rule = tiny_config().bucket_rule(32)
    for sample in LatentDataset(tmp_path / "out", flipped=True, raw=True):
        image = load_pixels((source / f"{sample['key']}.jpg").read_bytes(), rule, 10**9).data[:, ::-1].copy()
        alone = ae.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)[0]
        assert torch.allclose(sample["latents"], alone, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_stores_rounded_latents(photos: Path, cache: Path, tmp_path: Path, dtype: str) -> None:
    encode(photos, tmp_path / "out", dtype=dtype, compute_dtype="fp32")
    exact = LatentDataset(cache)
    for i, sample in enumerate(LatentDataset(tmp_path / "out")):
        stored = sample["latents"]
        assert torch.allclose(stored.float(), exact[i]["latents"].to(stored.dtype).float(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resolution": 256}, "resolution: 128 -> 256"),
        ({"dtype": "bf16"}, "dtype: fp32 -> bf16"),
        ({"bucket": "square"}, "bucket: area -> square"),
        ({"flip": True}, "flip: False -> True"),
        ({"scaling_factor": 0.5}, r"scaling_factor: .* -> 0\.5"),
    ],
)
def test_another_recipe_is_refused(photos: Path, cache: Path, change: dict[str, object], named: str) -> None:
    before = hashes(cache)
    with pytest.raises(RecipeMismatchError, match=named):
        encode(photos, cache, **change)
    assert hashes(cache) == before


def test_a_second_writer_is_refused(photos: Path, tmp_path: Path) -> None:
    encode(photos, tmp_path / "out")
    with locked(tmp_path / "out"), pytest.raises(CacheLockedError, match=r"host \S+, pid \d+"):
        encode(photos, tmp_path / "out")


def test_foreign_folders_are_not_written_to(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        encode(photos, tmp_path / "mine")
    with pytest.raises(UsageError, match="is a file"):
        encode(photos, tmp_path / "mine" / "thesis.tex")
    with pytest.raises(UsageError):
        encode(photos, photos)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.tex"]


def test_another_source_is_refused(photos: Path, tmp_path: Path) -> None:
    encode(photos, tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.jpg").write_bytes(encoded_image(128, 128))
    with pytest.raises(SourceError, match="None of the 20 planned samples"):
        encode(other, tmp_path / "out")


def test_skips_are_rows_with_reasons(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 4)
    (source / "cut.jpg").write_bytes(encoded_image(300, 300)[:2000])
    (source / "empty.png").touch()
    summary = encode(source, tmp_path / "out")
    assert (summary.encoded, summary.skipped) == (4, {"empty": 1, "truncated": 1})
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["key"], line["source"], line["reason"]) for line in skipped] == [
        ("cut", "cut.jpg", "truncated"),
        ("empty", "empty.png", "empty"),
    ]
    assert all(line["detail"] for line in skipped)


def test_too_many_skips_fail_at_the_end(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 3)
    (source / "empty.png").touch()
    config = tiny_config()
    encode_dataset(source, tmp_path / "out", config, RunOptions(device="cpu", max_skip_rate=0.25))
    with pytest.raises(TooManySkippedError, match=r"1 of 4 samples were skipped, 25\.00%.*usable"):
        encode_dataset(source, tmp_path / "out", config, RunOptions(device="cpu", max_skip_rate=0.2))
    assert len(LatentDataset(tmp_path / "out")) == 3


def test_a_source_where_nothing_can_be_used_fails_and_says_why(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (source / name).write_text("text")
    (source / "c.jpg").touch()
    with pytest.raises(TooManySkippedError, match=r"All 3 samples were skipped, 2 of them as not_an_image; .* a: "):
        encode(source, tmp_path / "out")
    assert len(LatentDataset(tmp_path / "out")) == 0
    (source / "d.jpg").write_bytes(encoded_image(90, 90))
    assert encode(source, tmp_path / "out").num_samples == 1


def test_limit_takes_the_first_ones(photos: Path, tmp_path: Path) -> None:
    options = RunOptions(device="cpu", limit=5)
    assert encode_dataset(photos, tmp_path / "out", tiny_config(), options).encoded == 5
    assert encode(photos, tmp_path / "out").num_samples == 20
    again = encode_dataset(photos, tmp_path / "out", tiny_config(), options)
    assert (again.encoded, again.vanished, again.num_samples) == (0, 0, 20)


def encode_with(kind: type[LatentEncoder], source: Path, out: Path, options: RunOptions, **recipe: object) -> Summary:
    """Encode with an encoder of that kind."""

    def open_kind(run: Run, streams: int) -> LatentEncoder:
        scaling_factor = run.recipe["scaling_factor"]
        return kind(run.model.load(), run.config.dtype, scaling_factor, run.config.flip, streams)

    request = Request(
        source=str(source), out=out, config=tiny_config(**recipe), options=options, source_options=SourceOptions()
    )
    return carry_out(request, Listener(), open_kind)


class Overflowing(LatentEncoder):
    """Gives NaN for every image whose first pixel is even, as fp16 overflow would; ``heals``: not in fp32."""

    heals = True

    def _encode(self, autoencoder, pixels):
        latents, mirrored = super()._encode(autoencoder, pixels)
        if autoencoder is not self._fp32 or not self.heals:
            latents = latents.clone()
            latents[pixels[:, 0, 0, 0] % 2 == 0] = float("nan")
        return latents, mirrored


@pytest.mark.parametrize("heals", [True, False])
def test_latents_that_are_not_finite_are_retried_then_skipped(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heals: bool
) -> None:
    monkeypatch.setattr(Overflowing, "heals", heals)
    summary = encode_with(Overflowing, photos, tmp_path / "out", RunOptions(device="cpu", batch_size=3, part_size=8))
    if heals:
        assert summary.skipped == {}
        same = zip(LatentDataset(cache), LatentDataset(tmp_path / "out"), strict=True)
        assert all(torch.allclose(a["latents"], b["latents"], atol=1e-5) for a, b in same)
        return
    assert 0 < summary.skipped["not_finite"] < 20
    assert summary.num_samples + summary.skipped["not_finite"] == 20
    exact = {sample["key"]: sample["latents"] for sample in LatentDataset(cache)}
    for sample in LatentDataset(tmp_path / "out"):
        assert torch.equal(exact[sample["key"]], sample["latents"])


class Huge(LatentEncoder):
    """Gives 4096 somewhere in the latents of images whose first pixel is even, NaN in half of those, in fp32 too."""

    def _encode(self, autoencoder, pixels):
        latents, mirrored = super()._encode(autoencoder, pixels)
        first = pixels[:, 0, 0, 0]
        latents = latents.clone()
        latents[first % 2 == 0, 0, 0, 0] = -4096.0
        latents[first % 4 == 0, 1, 0, 0] = float("nan")
        return latents, mirrored


def test_latents_that_are_finite_but_absurd_are_out_of_range_and_their_size_is_said(
    photos: Path, tmp_path: Path
) -> None:
    summary = encode_with(Huge, photos, tmp_path / "out", RunOptions(device="cpu", batch_size=3, part_size=8))
    assert set(summary.skipped) == {"not_finite", "out_of_range"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    told = {row["reason"]: row["detail"] for row in rows}
    assert told == {
        "not_finite": "the latent is NaN or Inf, in fp32 too",
        "out_of_range": "the latent goes up to 4096, in fp32 too; up to 1000 is believed",
    }


def test_an_error_while_encoding_reaches_the_caller(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dcae_cache.cache.parts.write_safetensors", fail)
    with pytest.raises(DCAECacheError, match="No space left"):
        encode(photos, tmp_path / "out")
    monkeypatch.undo()
    assert encode(photos, tmp_path / "out").num_samples == 20


def test_decoding_ahead_is_bounded(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the encoder, only so many decoded images may be waiting for it."""
    made, taken, most = [0], [0], [0]

    class Slow(LatentEncoder):
        def launch(self, images):
            threading.Event().wait(0.1)
            most[0] = max(most[0], made[0] - taken[0])
            taken[0] += len(images)
            return super().launch(images)

    def counted(*args: object, **options: object) -> object:
        made[0] += 1
        return load_fitted(*args, **options)

    monkeypatch.setattr("dcae_cache.loading.rows.load_fitted", counted)
    source = make_folder(tmp_path / "photos", 60)
    options = RunOptions(device="cpu", workers=1, batch_size=2, part_size=20)
    encode_with(Slow, source, tmp_path / "out", options, bucket="square")
    assert made[0] == 60
    # 4 in flight per worker and one more, one batch being filled, 2 + 1 batches queued, one in hand
    assert most[0] <= 5 + 2 * 5


def test_many_buckets_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every image has a bucket of its own, batches go before they are full."""
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(1, 9):
        (source / f"{number}.png").write_bytes(encoded_image(64, 32 * number, number, "PNG"))
    encode(source, tmp_path / "whole", bucket="native")
    limit = 3 * 64 * 256
    monkeypatch.setattr("dcae_cache.loading.batches.MAX_WAITING_BYTES", limit)
    settings = LoadSettings(tiny_config(bucket="native").fitting(32), 10**9, lambda bucket: 4, 1)
    origin = open_source(str(source))
    batches = load_batches(origin, [Part(0, tuple(origin.entries()))], settings)
    rows_at_first_batch = len(next(batches).part.rows)
    assert sum(64 * 32 * number * 3 for number in range(1, rows_at_first_batch)) <= limit
    assert rows_at_first_batch < 8
    batches.close()
    encode(source, tmp_path / "out", bucket="native")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_statistics_are_those_of_all_latents(cache: Path) -> None:
    values = torch.cat([sample["latents"].double().flatten(1) for sample in LatentDataset(cache)], dim=1)
    statistics = load_index(cache)["statistics"]
    assert statistics["count"] == values.shape[1]
    assert np.allclose(statistics["mean"], values.mean(dim=1), rtol=1e-9)
    assert np.allclose(statistics["std"], values.std(dim=1, correction=0), rtol=1e-9)
