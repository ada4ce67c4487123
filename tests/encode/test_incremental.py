"""A source that changes: only what is new is encoded, the rest is copied, and the result is that of a fresh cache."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcae_cache.cache.parts import read_rows
from dcae_cache.config import RunOptions
from dcae_cache.encode import reuse
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.errors import UsageError
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.images import encode, encoded_image, make_folder, tiny_config
from helpers.tars import make_tar, triples

COLUMNS = ("key", "caption", "label", "height", "width", "source", "source_hash", "crop_top", "crop_left")


def run(source: Path | str, out: Path, **options: object) -> Summary:
    settings_ = {"device": "cpu", "workers": 2, "part_size": 8, "batch_size": 3} | options
    return encode_dataset(source, out, tiny_config(), RunOptions(**settings_))  # type: ignore[arg-type]


def assert_same_samples(cache: Path, fresh: Path) -> None:
    """Sample by sample, whatever the parts."""
    found = {sample["key"]: sample for sample in LatentDataset(cache, columns=COLUMNS)}
    expected = {sample["key"]: sample for sample in LatentDataset(fresh, columns=COLUMNS)}
    assert found.keys() == expected.keys()
    for key, sample in found.items():
        assert {name: sample[name] for name in COLUMNS} == {name: expected[key][name] for name in COLUMNS}
        assert torch.allclose(sample["latents"], expected[key]["latents"], atol=1e-5)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of 30 and its cache, to be copied."""
    root = tmp_path_factory.mktemp("start")
    source = make_folder(root / "photos", 30)
    encode(source, root / "out")
    return source, root / "out"


def copy_of(start: tuple[Path, Path], root: Path) -> tuple[Path, Path]:
    source, out = start
    return shutil.copytree(source, root / "photos"), shutil.copytree(out, root / "out")


def test_added_changed_removed_and_renamed(start: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = copy_of(start, tmp_path)
    make_folder(source, 5, first=100)
    for number in (3, 6):
        (source / f"class0/img{number:03d}.jpg").write_bytes(encoded_image(256, 256, seed=1000 + number))
    for number in (4, 28):
        (source / f"class1/img{number:03d}.jpg").unlink()
    for number in (5, 26):
        (source / f"class2/img{number:03d}.jpg").rename(source / f"class2/renamed{number}.jpg")
    kept = run(source, out)
    assert (kept.encoded, kept.vanished, kept.pruned) == (7, 4, 0)
    assert kept.num_samples == 30 + 5 + 2  # those that vanished are kept
    pruned = run(source, out, prune=True)
    assert (pruned.encoded, pruned.vanished, pruned.pruned, pruned.num_samples) == (0, 4, 4, 33)
    encode(source, tmp_path / "fresh")
    assert_same_samples(out, tmp_path / "fresh")
    assert verify_cache(out, VerifyOptions(device="cpu")).ok
    again = run(source, out, prune=True)
    assert (again.encoded, again.copied, again.vanished, again.device) == (0, 0, 0, None)


def test_added_and_removed_at_once_with_prune(start: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = copy_of(start, tmp_path)
    shutil.move(source / "class0", source / "zoo")
    summary = run(source, out, prune=True)
    assert (summary.encoded, summary.copied, summary.num_samples) == (0, 16, 30)
    assert {sample["label"] for sample in LatentDataset(out)} == {"class1", "class2", "zoo"}
    encode(source, tmp_path / "fresh")
    assert_same_samples(out, tmp_path / "fresh")


def test_a_part_that_lost_everything_goes(start: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = copy_of(start, tmp_path)
    shutil.rmtree(source / "class2")
    summary = run(source, out, prune=True)
    assert (summary.encoded, summary.num_samples, summary.complete) == (0, 20, True)
    assert not (out / "parts" / "part-000003.safetensors").exists()
    assert verify_cache(out, VerifyOptions(integrity_only=True)).ok


def test_touched_but_equal_files_are_not_encoded(start: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = copy_of(start, tmp_path)
    before = (out / "parts" / "part-000000.safetensors").read_bytes()
    (source / "class0/img000.jpg").touch()
    (source / "class0/img000.txt").write_text("a new caption")
    summary = run(source, out)
    assert (summary.encoded, summary.copied) == (0, 8)
    assert (out / "parts" / "part-000000.safetensors").read_bytes() == before
    assert read_rows(out, "part-000000")["caption"][0].as_py() == "a new caption"


def test_mirrored_latents_are_copied_too(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 6)
    encode(source, tmp_path / "out", flip=True)
    before = (tmp_path / "out" / "parts" / "part-000000.safetensors").read_bytes()
    (source / "class0/img000.jpg").touch()
    assert encode(source, tmp_path / "out", flip=True).copied == 6
    assert (tmp_path / "out" / "parts" / "part-000000.safetensors").read_bytes() == before


def test_a_damaged_part_is_encoded_not_copied(start: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = copy_of(start, tmp_path)
    shard = out / "parts" / "part-000000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    (source / "class0/img000.jpg").touch()
    assert (run(source, out).encoded, verify_cache(out, VerifyOptions(integrity_only=True)).ok) == (8, True)


def test_a_part_killed_between_shard_and_table_is_not_copied_from(
    start: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old table and the new shard agree in size: only the hash tells that they don't belong together."""
    source, out = copy_of(start, tmp_path)
    first, second = source / "class0/img000.jpg", source / "class0/img006.jpg"  # of one size
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with monkeypatch.context() as patch:
        patch.setattr(
            "dcae_cache.cache.parts.pq.write_table", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run(source, out)
    run(source, out)
    encode(source, tmp_path / "fresh")
    assert_same_samples(out, tmp_path / "fresh")


def test_moved_latents_beyond_the_limit_are_encoded(
    start: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = copy_of(start, tmp_path)
    shutil.move(source / "class0", source / "zoo")
    monkeypatch.setattr(reuse, "MAX_MOVED_BYTES", 3 * 2048)
    summary = run(source, out)
    assert 0 < summary.encoded < 10
    assert summary.encoded + summary.copied == 10


def test_a_tar_that_grew_encodes_only_what_is_new(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", triples(0, 5))
    run(str(tar), tmp_path / "out")
    make_tar(tar, triples(0, 7))
    summary = run(str(tar), tmp_path / "out")
    assert (summary.encoded, summary.copied, summary.num_samples) == (2, 5, 7)


def test_rows_of_a_table_may_move(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(encoded_image(96, 128, seed=number))
        rows.append({"path": f"{number}.jpg", "caption": f"picture {number}"})
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    run(str(table), tmp_path / "out")
    table.write_text("\n".join(map(json.dumps, reversed(rows[2:]))))
    summary = run(str(table), tmp_path / "out")
    assert (summary.encoded, summary.vanished, summary.num_samples) == (0, 2, 6)
    assert {sample["key"]: sample["caption"] for sample in LatentDataset(tmp_path / "out")} == {
        str(number): f"picture {number}" for number in range(6)
    }
    assert run(str(table), tmp_path / "out", prune=True).num_samples == 4


def test_prune_and_limit_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="`limit`"):
        RunOptions(prune=True, limit=3)


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "change", "remove", "rename", "kill", "run", "prune"]), st.integers(0, 20)),
    max_size=8,
)


@pytest.mark.slow
@given(steps=STEPS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_changes_ends_in_the_right_cache(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("sequence")
    source = make_folder(root / "photos", 6)

    def stop_after(count: int) -> object:
        def stop(progress: object) -> None:
            if progress.done >= count:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

        return stop

    for step, (what, number) in enumerate(steps):
        files = sorted(source.rglob("*.jpg"))
        chosen = files[number % len(files)]
        if what == "add":
            (source / f"new{step}.jpg").write_bytes(encoded_image(96, 128, seed=500 + number))
        elif what == "change":
            chosen.write_bytes(encoded_image(128, 96 + number, seed=900 + step))
        elif what == "remove" and len(files) > 3:
            chosen.unlink()
        elif what == "rename":
            chosen.rename(source / f"renamed{step}.jpg")
        elif what == "kill":
            options = RunOptions(device="cpu", workers=1, part_size=2, batch_size=2)
            with contextlib.suppress(KeyboardInterrupt):
                encode_dataset(source, root / "out", tiny_config(), options, progress=stop_after(number))  # type: ignore[arg-type]
        else:
            run(source, root / "out", part_size=2, prune=what == "prune")
    run(source, root / "out", part_size=2, prune=True)
    encode(source, root / "fresh")
    assert_same_samples(root / "out", root / "fresh")
    assert verify_cache(root / "out", VerifyOptions(integrity_only=True)).ok


def test_edited_captions_reach_the_tables_and_nothing_else(start: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = copy_of(start, tmp_path)
    shards = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (out / "parts").glob("*.safetensors")}
    (source / "class1/img001.txt").write_text("edited")
    first = run(source, out)
    assert (first.encoded, first.device, first.refreshed) == (0, None, 1)
    (source / "class1/img001.txt").write_text("edited")
    (out / "notes.json").write_text("{}")
    said: list[str] = []
    options = RunOptions(device="cpu", part_size=8, refresh_metadata=True)
    summary = encode_dataset(source, out, tiny_config(), options, notify=said.append)
    assert (summary.encoded, summary.device) == (0, None)
    assert said == ["Read the captions, labels and attributes of 4 parts again: 0 rows changed."]
    found = {sample["key"]: sample["caption"] for sample in LatentDataset(out)}
    assert {key for key, caption in found.items() if caption == "edited"} == {"class1/img001"}
    assert shards == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in shards}
    assert verify_cache(out, VerifyOptions(integrity_only=True)).ok
