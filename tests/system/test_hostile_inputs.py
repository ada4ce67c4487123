"""Tars, tables, lists and names of others: memory stays small, no secret is written, nothing steers the terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.errors import CheckpointError, SampleSkipped, SourceError, UsageError
from dcae_cache.models.folder import Folder, read_checkpoint
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.records import Part, Sample
from dcae_cache.sources import SourceOptions, open_source
from dcae_cache.sources.base import too_large
from dcae_cache.sources.fetching import refuse_foreign_place
from dcae_cache.sources.hf_columns import Places, image_bytes
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from dcae_cache.verify.report import write_report
from helpers.command import COMMAND, TINY, run
from helpers.file_server import serve
from helpers.hostile import add_zeros, sparse_member, xz_with_dictionary, zeros_in_gzip
from helpers.images import encode, encoded_image, tiny_config
from helpers.tars import make_tar, triples

MIB = 2**20


def read_all(uri: str, **options: object) -> dict[str, Sample | SampleSkipped]:
    source = open_source(uri, SourceOptions(**options))
    found: dict[str, Sample | SampleSkipped] = {}
    for ref in source.read(Part(0, tuple(source.entries()))):
        try:
            found[ref.key] = ref.load()
        except SampleSkipped as skip:
            found[ref.key] = skip
    return found


def test_a_member_that_unpacks_to_far_more_is_not_read(tmp_path: Path) -> None:
    """48 MiB of zeros in a few hundred kilobytes."""
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in triples(0, 1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        add_zeros(archive, "bomb.jpg", 48 * MIB)
    assert path.stat().st_size < MIB
    tracemalloc.start()
    found = read_all(str(path), max_bytes=MIB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found["000000000"], Sample)
    bomb = found["bomb"]
    assert isinstance(bomb, SampleSkipped)
    assert (bomb.reason, bomb.detail) == ("too_large", "bomb.jpg has 48.0 MiB; `max_bytes` allows 1.0 MiB")
    assert peak < 16 * MIB


def test_a_sparse_member_is_as_large_as_it_says(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("good.jpg")
        info.size = len(encoded_image(96, 128))
        archive.addfile(info, io.BytesIO(encoded_image(96, 128)))
        offset = archive.offset
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:offset] + sparse_member("huge.jpg", 13 * 2**30) + bytes(10240))
    tracemalloc.start()
    found = read_all(str(tmp_path / "a.tar"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(found["huge"]) == "too_large: huge.jpg has 13.0 GiB; `max_bytes` allows 256.0 MiB"
    assert isinstance(found["good"], Sample)
    assert peak < 16 * MIB


@pytest.mark.slow
def test_a_whole_run_over_hostile_tars_stays_small(tmp_path: Path) -> None:
    """3 GiB of zeros in 3 MB, a sparse member of 13 GiB, a dictionary of 4 GiB, JSON that is nested absurdly deep."""
    make_tar(tmp_path / "in/good.tar", triples(0, 2))
    huge = tarfile.TarInfo("zeros.jpg")
    huge.size = 3 * 2**30 - 10240  # the rest is the end mark of the tar
    (tmp_path / "in/zeros.tar.gz").write_bytes(zeros_in_gzip(huge.tobuf(), 3))
    (tmp_path / "in/sparse.tar").write_bytes(sparse_member("sparse.jpg", 13 * 2**30) + bytes(10240))
    packed = xz_with_dictionary((tmp_path / "in/good.tar").read_bytes(), 40)
    (tmp_path / "in/dictionary.tar.xz").write_bytes(packed)
    make_tar(tmp_path / "in/deep.tar", [("deep.jpg", encoded_image(96, 128)), ("deep.json", b"[" * 10**6)])
    names = ("good.tar", "zeros.tar.gz", "sparse.tar", "dictionary.tar.xz", "deep.tar")
    (tmp_path / "tars.txt").write_text("\n".join(f"in/{name}" for name in names))
    done = run("encode", tmp_path / "tars.txt", "--out", tmp_path / "out", *TINY, expect=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "1 input files are damaged" in line
    assert "Memory usage limit" in done.stderr + (tmp_path / "out/skipped.jsonl").read_text()
    rows = [json.loads(text) for text in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in rows) == ["bad_json", "damaged", "too_large", "too_large"]
    assert done.peak_mib < 2000


def test_many_members_of_one_sample_count_together(tmp_path: Path) -> None:
    members = [("a.txt", b"x" * 3 * MIB), ("a.json", b" " * 3 * MIB)]
    make_tar(tmp_path / "a.tar", [("a.jpg", encoded_image(96, 128)), *members])
    assert str(read_all(str(tmp_path / "a.tar"), max_bytes=4 * MIB)["a"]).startswith("too_large: a.json has 3.0 MiB")


def test_a_name_of_megabytes_is_damage(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    (skip,) = read_all(str(tmp_path / "a.tar")).values()
    assert "a member's name takes 8.0 GiB" in str(skip)


def test_json_that_is_nested_absurdly_deep_skips_its_sample(tmp_path: Path) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    make_tar(tmp_path / "a.tar", [("a.jpg", encoded_image(96, 128)), ("a.json", deep)])
    assert str(read_all(str(tmp_path / "a.tar"))["a"]).startswith("bad_json: a.json: lists or objects are nested")
    (tmp_path / "t.jsonl").write_bytes(b'{"path": "a.jpg", "x": ' + deep + b"}\n")
    with pytest.raises(SourceError, match=r"t\.jsonl, line 1: .*lists or objects are nested"):
        list(open_source(str(tmp_path / "t.jsonl")).entries())


def test_files_and_rows_beyond_the_limit_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded_image(300, 300))
    assert str(read_all(str(tmp_path), max_bytes=1000)["a"]).startswith("too_large: a.jpg has")
    (tmp_path / "t.csv").write_text("path\na.jpg\n")
    assert str(read_all(str(tmp_path / "t.csv"), max_bytes=1000)["a"]).startswith("too_large: ")
    with pytest.raises(UsageError, match="`max_bytes` must be at least 1"):
        SourceOptions(max_bytes=0)
    assert too_large("x", None, 1024).detail == "x is larger; `max_bytes` allows 1.0 KiB"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("encoder_block_out_channels", [10**30] * 6, "a width of at most 16384"),
        ("encoder_block_out_channels", [128] * 10**4, "a list of 2 to 12 widths"),
        ("encoder_layers_per_block", [10**9] * 6, "a depth of at most 256"),
        ("latent_channels", 10**12, "latent_channels is 1000000000000, expected an integer from 1 to 16384"),
    ],
)
def test_a_model_of_absurd_widths_is_refused_by_name(tmp_path: Path, key: str, value: object, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", key: value}))
    with pytest.raises(CheckpointError, match=said) as caught:
        read_checkpoint(Folder(tmp_path), "x")
    assert len(str(caught.value)) < 600


def test_a_model_whose_config_is_nested_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deep"):
        read_checkpoint(Folder(tmp_path), "x")


@pytest.mark.parametrize(
    "place",
    [
        *("/etc/passwd", "file:///etc/a.tar", "local:///etc/a.tar", "zip://a::file:///etc/x.zip", "pipe:rm -rf x"),
        *(
            "~/a.tar",
            "{https://h/a.tar,/etc/a.tar}",
            "{file,https}://h/a.tar",
            "a.tar::/etc/b.tar",
            "git:///srv/a.tar",
        ),
        *("FILE:///etc/a.tar", "https://h/{0..99999999}.tar", "x{0..9999}{0..9999}.tar", "${WDS_X}/a.tar"),
    ],
)
def test_a_list_from_elsewhere_names_no_file_of_ours(place: str) -> None:
    with pytest.raises(SourceError, match=r"https://h/list\.txt"):
        refuse_foreign_place(place, "https://h/list.txt")


@pytest.mark.parametrize("place", ["a.tar", "sub/{000..099}.tar", "https://h/a.tar?x=1", "s3://b/a*.tar"])
def test_a_list_from_elsewhere_names_remote_files(place: str) -> None:
    refuse_foreign_place(place, "https://h/list.txt")


def test_lists_of_a_server_and_of_this_disk(tmp_path: Path) -> None:
    make_tar(tmp_path / "web/a.tar", triples(0, 1))
    (tmp_path / "web/good.txt").write_text("a.tar\n")
    (tmp_path / "web/bad.txt").write_text(f"{tmp_path}/web/a.tar\n")
    with serve(tmp_path / "web") as server:
        assert [entry.key for entry in open_source(f"{server.url}/good.txt").entries()] == [f"{server.url}/a.tar"]
        with pytest.raises(SourceError, match="may name remote files alone"):
            list(open_source(f"{server.url}/bad.txt").entries())
    assert len(list(open_source(str(tmp_path / "web/bad.txt")).entries())) == 1


def test_a_dataset_of_the_hub_names_no_file_of_ours(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    for name in ("hub/a.jpg", "mine.jpg"):
        (tmp_path / name).write_bytes(b"x")
    places = Places(None, (tmp_path / "hub",), SourceOptions())
    assert image_bytes({"path": str(tmp_path / "hub/a.jpg"), "bytes": None}, places) == b"x"
    for path in (tmp_path / "mine.jpg", tmp_path / "hub/../mine.jpg", f"hf://x::file://{tmp_path}/mine.jpg"):
        with pytest.raises(SampleSkipped, match="unreadable"):
            image_bytes({"path": str(path), "bytes": None}, places)
    assert image_bytes(str(tmp_path / "mine.jpg"), Places(None, None, SourceOptions())) == b"x"


SIGNED = "X-Amz-Date={day}&X-Amz-Signature=S3CRET{day}"


def _refuse_secrets(folder: Path, *texts: str) -> None:
    for text in (*texts, *(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())):
        assert "S3CRET" not in text
        assert "hunter2" not in text


def test_no_secret_of_a_tar_is_written_and_one_signed_anew_is_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_tar(tmp_path / "web/a.tar", [*triples(0, 2), ("bad.jpg", b"no picture")])
    out = tmp_path / "out"
    said: list[str] = []
    with serve(tmp_path / "web") as server:
        place = server.url.replace("http://", "http://me:hunter2@") + "/a.tar?v=1&" + SIGNED
        for day, encoded in (("1", 2), ("2", 0)):
            summary = encode_dataset(
                place.format(day=day), out, tiny_config(), RunOptions(device="cpu"), notify=said.append
            )
            assert summary.encoded == encoded
        assert LatentDataset(out).index["source"]["uri"] == f"{server.url}/a.tar?v=1"
        result = verify_cache(out, VerifyOptions(device="cpu", source=place.format(day="3"), pictures=True))
        assert result.ok
        write_report(result, tmp_path / "report")
        with pytest.raises(SourceError) as caught:
            encode_dataset(place.format(day="4").replace("a.tar", "gone.tar"), tmp_path / "x", tiny_config())
    _refuse_secrets(out, *said, str(caught.value), *capfd.readouterr())
    _refuse_secrets(tmp_path / "report")
    (row,) = (json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines())
    assert row["source"].endswith("/a.tar?v=1/bad.jpg")


def test_no_secret_of_a_table_is_written_and_rows_signed_anew_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web/a.jpg").write_bytes(encoded_image(96, 128))
    table, out = tmp_path / "t.jsonl", tmp_path / "out"
    with serve(tmp_path / "web") as server:
        for day, encoded in (("1", 1), ("2", 0)):
            host = server.url.replace("http://", "http://me:hunter2@")
            urls = [f"{host}/{name}?{SIGNED.format(day=day)}" for name in ("a.jpg", "gone.jpg")]
            rows = [{"url": url, "page": f"{host}/page?token=S3CRET&n=1", "w": 128} for url in urls]
            table.write_text("\n".join(map(json.dumps, rows)))
            done = run(
                "encode", table, "--out", out, "--model", "f32c32-tiny", "--resolution", "128", "--device", "cpu"
            )
            assert (f"Encoded {encoded}" if encoded else "up to date") in done.stderr
            _refuse_secrets(out, done.stderr, done.stdout)
    assert run("info", out, "--json").stdout.count("S3CRET") == 0


NASTY = "\x1b]0;owned\x07\x1b[31m\x9b2J"


def test_keys_do_not_steer_a_terminal_or_a_page(tmp_path: Path) -> None:
    make_tar(
        tmp_path / "a.tar", [(f"{NASTY}{number}.jpg", encoded_image(96, 128, seed=number)) for number in range(2)]
    )
    encode(tmp_path / "a.tar", tmp_path / "out")
    leader, follower = pty.openpty()
    command = [
        *COMMAND,
        "verify",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--min-psnr",
        "99",
        "--report",
        str(tmp_path / "report"),
    ]
    process = subprocess.Popen(command, stdout=follower, stderr=follower, stdin=subprocess.DEVNULL)
    os.close(follower)
    shown = bytearray()
    while True:
        try:
            block = os.read(leader, 2**16)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(leader)
    assert process.wait() == 3
    assert b"\\x1b]0;owned\\x07" in shown, "it is shown, spelt out"
    assert b"\x1b]" not in shown
    assert b"\x07" not in shown
    assert "\x9b".encode() not in shown
    page = (tmp_path / "report/index.html").read_text()
    assert not any(ord(character) < 32 and character not in "\n\t" for character in page)
    assert "\x9b" not in page


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v")
def test_too_little_memory_is_one_line(photos: Path, tmp_path: Path) -> None:
    command = " ".join([*COMMAND, "encode", str(photos), "--out", str(tmp_path / "out"), "--model", "f32c32-tiny"])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 400000; exec {command}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: There is not enough memory" in done.stderr.strip().splitlines()[-1]
