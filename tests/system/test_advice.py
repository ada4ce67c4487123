"""Every message that tells a person to run something: it is run here, and the fault must be gone.

Each test makes a fault, sees the message, and does what it says. In this process: advice is about what a command does,
and how commands start is tested elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dcae_cache.cache.index import load_index
from dcae_cache.cli.main import app
from dcae_cache.errors import DCAECacheError
from dcae_cache.reader.dataset import LatentDataset
from helpers.hf_datasets import make, parquet
from helpers.images import encoded_image, make_folder
from helpers.tars import make_tar, triples

IMAGE = encoded_image(96, 128)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def command(*arguments: object) -> tuple[int, str]:
    """The exit code (1 for an error of ours) and everything that was said."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, DCAECacheError):
        return 1, result.output + str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def encode(source: object, out: Path, *options: object) -> str:
    """What a run says that must succeed."""
    code, said = command("encode", source, "--out", out, *_recipe(), *options)
    assert code == 0, said
    return said


def failing(source: object, out: Path, *options: object) -> str:
    """What a run says that must fail."""
    code, said = command("encode", source, "--out", out, *_recipe(), *options)
    assert code == 1, said
    return said


def _recipe() -> tuple[object, ...]:
    return ("--model", "f32c32-tiny", "--resolution", 128, "--dtype", "fp32", "--device", "cpu", "--workers", 2)


def captions(out: Path) -> list[str]:
    return [sample["caption"] for sample in LatentDataset(out)]


def test_tars_that_begin_their_keys_anew(tmp_path: Path, out: Path) -> None:
    for number in range(2):
        make_tar(tmp_path / f"{number}.tar", triples(0, 2))
    assert "`key` shard" in failing(f"{tmp_path}/*.tar", out)
    encode(f"{tmp_path}/*.tar", out, "--key", "shard")
    assert len(LatentDataset(out)) == 4


def test_keys_that_repeat_further_on(tmp_path: Path, out: Path) -> None:
    make_tar(tmp_path / "0.tar", triples(0, 3))
    make_tar(tmp_path / "1.tar", triples(1, 3))
    said = failing(f"{tmp_path}/*.tar", out)
    assert "with `key` shard" in said
    encode(f"{tmp_path}/*.tar", tmp_path / "another", "--key", "shard")
    assert len(LatentDataset(tmp_path / "another")) == 6


def test_members_that_do_not_stand_together(tmp_path: Path, out: Path) -> None:
    members = [*((f"{n}.jpg", IMAGE) for n in range(2)), *((f"{n}.txt", b"text") for n in range(2))]
    tar = make_tar(tmp_path / "a.tar", members)
    assert "tar --sort=name" in failing(tar, out)
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "files", filter="data")
    subprocess.run(["tar", "--sort=name", "-cf", tar, "-C", tmp_path / "files", "."], check=True)
    encode(tar, out)
    assert captions(out) == ["text", "text"]


@pytest.mark.parametrize("option", [("--image-column", "left.png"), ("--key-split", "last")])
def test_two_images_in_one_sample(tmp_path: Path, out: Path, option: tuple[str, str]) -> None:
    tar = make_tar(tmp_path / "a.tar", [("a.left.png", IMAGE), ("a.right.png", IMAGE), ("a.txt", b"both")])
    said = failing(tar, out)
    assert "`image_column`" in said
    assert "`key_split` last" in said
    encode(tar, tmp_path / "again", *option)
    assert len(LatentDataset(tmp_path / "again")) == (1 if option[1] == "left.png" else 2)


def test_captions_of_unknown_encoding(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", 1)
    (source / "class0/img000.txt").write_bytes("café".encode("cp1252"))
    assert "Name it with --caption-encoding and run again" in encode(source, out)
    assert captions(out) == [""]
    assert "not UTF-8" not in encode(source, out, "--caption-encoding", "cp1252")
    assert captions(out) == ["café"]


def test_tables_of_another_encoding_and_delimiter(tmp_path: Path, out: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "t.csv").write_bytes("path,text\na.jpg,café\n".encode("cp1252"))
    assert "`caption_encoding`" in failing(tmp_path / "t.csv", out)
    encode(tmp_path / "t.csv", out, "--caption-encoding", "cp1252")
    assert captions(out) == ["café"]
    (tmp_path / "u.csv").write_text("path^text\na.jpg^one, two\n")
    assert "2 cells, where the header has 1" in (said := failing(tmp_path / "u.csv", tmp_path / "u"))
    assert "`delimiter`" in said
    encode(tmp_path / "u.csv", tmp_path / "u", "--delimiter", "^")
    assert captions(tmp_path / "u") == ["one, two"]


def test_columns_and_fields_that_must_be_chosen(tmp_path: Path, out: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "t.csv").write_text("where,said\na.jpg,hello\n")
    assert "Choose one with `image_column`" in failing(tmp_path / "t.csv", out)
    said = failing(tmp_path / "t.csv", out, "--image-column", "where", "--caption-column", "x")
    assert "it has: where, said" in said
    encode(tmp_path / "t.csv", out, "--image-column", "where", "--caption-column", "said")
    assert captions(out) == ["hello"]
    source = make_folder(tmp_path / "in", 1)
    (source / "class0/img000.json").write_text('{"llava": "long"}')
    said = failing(source, tmp_path / "folder", "--caption-column", "lava")
    assert "it has: llava. Choose one with `caption_column`" in said
    encode(source, tmp_path / "folder", "--caption-column", "llava")
    assert captions(tmp_path / "folder") == ["long"]


def test_splits_and_kinds_of_tars_that_must_be_chosen(tmp_path: Path, out: Path) -> None:
    for split in ("train", "test"):
        images = [{"bytes": IMAGE, "path": None}]
        parquet(tmp_path / f"repo/data/{split}-00000-of-00001.parquet", make(1, image=images))
    assert "choose one with `split`" in failing(tmp_path / "repo", out)
    encode(tmp_path / "repo", out, "--split", "test")
    assert len(LatentDataset(out)) == 1
    make_tar(tmp_path / "tars/0.tar", triples(0, 1))
    make_tar(tmp_path / "tars/1.tar.gz", triples(1, 1), "w:gz")
    assert f"'{tmp_path}/tars/**/*.tar.gz'" in failing(tmp_path / "tars", tmp_path / "gz")
    encode(f"{tmp_path}/tars/**/*.tar.gz", tmp_path / "gz")
    assert len(LatentDataset(tmp_path / "gz")) == 1


def test_an_option_without_effect_is_left_out(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", 1)
    code, said = command("encode", source, "--out", out, *_recipe(), "--split", "train")
    assert code == 1, "an error of ours"
    assert "Leave it out" in said
    encode(source, out)


def test_a_damaged_tar_is_mended_or_accepted(tmp_path: Path, out: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", triples(0, 3))
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    assert "accept the loss with `allow_damaged`" in failing(tar, out)
    encode(tar, out, "--allow-damaged")
    tar.write_bytes(whole)
    encode(tar, out)
    assert len(LatentDataset(out)) == 3


def test_a_damaged_data_file_is_passed_by_streaming(tmp_path: Path, out: Path) -> None:
    pq.write_table(pa.table({"jpg": [IMAGE], "n": [1]}), _made(tmp_path / "d/a.parquet"))
    (tmp_path / "d/b.parquet").write_bytes(b"PAR1 broken")
    assert "`streaming` gets past it" in failing(tmp_path / "d", out)
    said = failing(tmp_path / "d", out, "--streaming")
    assert "The other parts are in the cache" in said
    assert len(LatentDataset(out, allow_incomplete=True)) == 1


def test_a_broken_part_is_repaired(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", 4)
    encode(source, out, "--part-size", 2)
    shard = out / "parts/part-000001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    code, said = command("verify", out, "--integrity-only")
    assert (code, "run the same encode command with --repair" in said) == (3, True)
    encode(source, out, "--part-size", 2, "--repair")
    assert command("verify", out, "--integrity-only")[0] == 0


def test_an_image_that_changed_is_encoded_anew(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", 2)
    encode(source, out)
    path = source / "class0/img000.jpg"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, said = command("verify", out, "--device", "cpu")
    assert code == 3
    assert "run the same encode command with --recheck" in said
    encode(source, out, "--recheck")
    assert command("verify", out, "--device", "cpu")[0] == 0


def test_images_that_are_gone_are_dropped_with_prune(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", 2)
    encode(source, out)
    (source / "class0/img000.jpg").unlink()
    code, said = command("verify", out, "--device", "cpu")
    assert code == 3
    assert "drop it with encode --prune" in said
    assert "--prune drops them" in encode(source, out)
    encode(source, out, "--prune")
    assert command("verify", out, "--device", "cpu")[0] == 0


def test_another_recipe_overwrites_where_that_is_said(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", 1)
    encode(source, out)
    assert "`overwrite`" in failing(source, out, "--flip")
    encode(source, out, "--flip", "--overwrite", "--yes")
    assert load_index(out)["recipe"]["flip"]


def test_a_job_that_was_the_last_is_finalized(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", 4)
    said = encode(source, out, "--part-size", 2, "--part-range", "0/2")
    assert "dcae-cache info --finalize" in said
    assert command("info", out)[0] == 1
    assert command("info", out, "--finalize")[0] == 0
    assert len(LatentDataset(out, allow_incomplete=True)) == 2


def test_commands_are_allowed_where_they_are_wanted(tmp_path: Path, out: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", triples(0, 1))
    code, said = command("encode", f"pipe:cat {tar}", "--out", out, *_recipe())
    assert code == 1
    assert "`allow_pipe`" in said
    encode(f"pipe:cat {tar}", out, "--allow-pipe")


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
