"""Input tars: what becomes of their members, of damage, of broken connections, of names that are traps."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from dcae_cache import remote
from dcae_cache.cache.parts import read_rows
from dcae_cache.config import RunOptions
from dcae_cache.encode import latent_buffer as latent_store
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.errors import DamagedSourceError, SampleSkipped, SourceError, UsageError
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.records import Part, Sample
from dcae_cache.sources import SourceOptions, open_source
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.file_server import serve
from helpers.images import encoded_image, tiny_config
from helpers.tars import make_tar, triples


def samples(uri: str, **options: object) -> dict[str, Sample]:
    source = open_source(uri, SourceOptions(**options))  # type: ignore[arg-type]
    return {ref.key: ref.load() for entry in source.entries() for ref in source.read(Part(0, (entry,)))}


def keys(uri: str, limit: int | None = None) -> list[list[str]]:
    source = open_source(uri)
    return [[ref.key for ref in source.read(Part(0, (entry,)))] for entry in source.entries(limit)]


def encode(uri: str, out: Path, **options: object) -> Summary:
    run = RunOptions(device="cpu", workers=2, batch_size=3, **options)  # type: ignore[arg-type]
    return encode_dataset(uri, out, tiny_config(), run)


def test_members_become_image_caption_attributes_and_label(tmp_path: Path) -> None:
    make_tar(
        tmp_path / "a.tar",
        [
            *triples(0, 1),
            ("x/y.JPG", b"upper"),
            ("x/y.cls", b"7\n"),
            ("list.png", b"p"),
            ("list.json", b'{"caption": ["one", "two"], "score": 0.5}'),
            ("two.photo.webp", b"w"),
            ("__bookkeeping__/x.jpg", b"no"),
            ("nodot", b"no"),
        ],
    )
    found = samples(str(tmp_path / "a.tar"))
    assert list(found) == ["000000000", "x/y", "list", "two"]
    first = found["000000000"]
    assert first.caption == "picture 0"
    assert first.attributes == {"key": "000000000", "status": "success", "width": 128, "height": 96}
    assert (first.shard, first.source) == ("a", f"{tmp_path / 'a.tar'}/000000000.jpg")
    assert (found["x/y"].data, found["x/y"].label) == (b"upper", "7")
    assert found["list"].caption == "one"
    assert found["list"].attributes == {"caption": ["one", "two"], "score": 0.5}
    assert found["two"].data == b"w"


def test_a_sample_without_image_or_with_bad_json_is_skipped_with_its_reason(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", [("a.txt", b"only text"), ("b.jpg", b"x"), ("b.json", b"{nope")])
    source = open_source(str(tar))
    reasons = []
    for ref in source.read(Part(0, tuple(source.entries()))):
        with pytest.raises(SampleSkipped) as skip:
            ref.load()
        reasons.append(skip.value.reason)
    assert reasons == ["no_image", "bad_json"]


def test_the_image_member_can_be_named(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", [("a.jpg", b"small"), ("a.large.jpg", b"large")])
    assert samples(str(tar))["a"].data == b"small"
    assert samples(str(tar), image_column="large.jpg")["a"].data == b"large"


def test_braces_globs_lists_and_folders_name_the_same_tars(tmp_path: Path) -> None:
    for number in range(12):
        make_tar(tmp_path / "data" / f"{number:03d}.tar", [(f"{number}.jpg", b"x")])
    (tmp_path / "some.txt").write_text("# these\ndata/{000..009}.tar\n\n" + str(tmp_path / "data" / "01?.tar") + "\n")
    expected = [[str(number)] for number in range(12)]
    for uri in ("data/{000..011}.tar", "data/*.tar", "some.txt", "data"):
        assert keys(str(tmp_path / uri)) == expected, uri
    (tmp_path / "data" / "000.parquet").write_bytes(b"img2dataset leaves its tables there")
    (tmp_path / "data" / "000_stats.json").write_bytes(b"{}")
    assert keys(str(tmp_path / "data")) == expected
    make_tar(tmp_path / "{a}*.tar", [("literal.jpg", b"x")])
    assert keys(str(tmp_path / "{a}*.tar")) == [["literal"]]


@pytest.mark.parametrize(
    ("uri", "said"),
    [("none.tar", "Can't read .*none.tar"), ("no/*.tar", "No tar matches"), ("empty.txt", "names no tars")],
)
def test_what_is_not_there_is_named(tmp_path: Path, uri: str, said: str) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(SourceError, match=said):
        list(open_source(str(tmp_path / uri)).entries())


def test_commands_run_only_when_allowed(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", triples(0, 2))
    with pytest.raises(UsageError, match="`allow_pipe`"):
        list(open_source(f"pipe:cat {tar}").entries())
    assert list(samples(f"pipe:cat {tar}", allow_pipe=True)) == ["000000000", "000000001"]
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path / 'ran'}\n")
    with pytest.raises(UsageError):
        list(open_source(str(tmp_path / "list.txt")).entries())
    assert not (tmp_path / "ran").exists()
    with pytest.raises(SourceError, match="exit status 3"):
        samples(f"pipe:cat {tar}; exit 3", allow_pipe=True)


def test_names_are_data(tmp_path: Path) -> None:
    trap = '../../etc/it\'s "ü" 100%'
    tar = make_tar(tmp_path / "in" / "a.tar", [(f"{trap}.jpg", encoded_image(96, 128)), ("b\udcff.jpg", b"x")])
    out = tmp_path / "deep" / "down" / "out"
    encode(str(tar), out)
    rows = read_rows(out, "part-000000").to_pylist()
    assert [row["key"] for row in rows] == [trap, "file:b%FF"]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "deep"}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_limit_counts_samples(tmp_path: Path, suffix: str) -> None:
    for number in range(3):
        mode = "w" if suffix == "tar" else "w:gz"
        make_tar(tmp_path / f"{number}.{suffix}", [(f"{number}-{i}.jpg", b"x") for i in range(4)], mode)
    uri = f"{tmp_path}/{{0..2}}.{suffix}"
    assert [len(part) for part in keys(uri, 6)] == [4, 2]
    assert [len(part) for part in keys(uri, 8)] == [4, 4]
    assert [entry.max_samples for entry in open_source(uri).entries(8)] == [None, None]
    assert [len(part) for part in keys(uri, 99)] == [4, 4, 4]


def test_a_higher_limit_adds_and_a_lower_one_takes_nothing_away(tmp_path: Path) -> None:
    tar, out = str(make_tar(tmp_path / "a.tar", triples(0, 5))), tmp_path / "out"
    assert encode(tar, out, limit=2).num_samples == 2
    assert encode(tar, out, limit=4).num_samples == 4
    assert encode(tar, out, limit=1).encoded == 0
    assert encode(tar, out).num_samples == 5
    assert encode(tar, out, limit=1).num_samples == 5


@pytest.mark.parametrize(
    "damage", ["cut in an image", "cut in a header", "cut at the end mark", "header", "not a tar"]
)
def test_damage_keeps_what_comes_before_it_and_is_reported(tmp_path: Path, damage: str) -> None:
    tar = make_tar(tmp_path / "a.tar", triples(0, 4))
    with tarfile.open(tar) as archive:
        third = archive.getmember("000000002.jpg")
        last = archive.getmembers()[-1]
    data = bytearray(tar.read_bytes())
    end = last.offset_data + -(-last.size // 512) * 512
    whole = {
        "cut in an image": data[: third.offset_data + 100],
        "cut in a header": data[: third.offset + 200],
        "cut at the end mark": data[:end],
        "header": data[: third.offset] + b"\x55" * 512 + data[third.offset_data :],
        "not a tar": b"<html>404</html>" * 100,
    }[damage]
    tar.write_bytes(whole)
    good = {"cut at the end mark": 4, "not a tar": 0}.get(damage, 2)
    out = tmp_path / "out"
    with pytest.raises(DamagedSourceError, match=r"1 input files are damaged, the first: .*a\.tar .* `allow_damaged`"):
        encode(str(tar), out)
    assert [row["key"] for row in read_rows(out, "part-000000").to_pylist()] == [
        *(f"{number:09d}" for number in range(good)),
        "a/__damaged__",
    ]
    summary = encode(str(tar), out, allow_damaged=True)
    assert (summary.encoded, summary.num_samples, summary.skipped) == (0, good, {"damaged": 1})
    make_tar(tar, triples(0, 4))
    assert encode(str(tar), out).skipped == {}
    assert len(LatentDataset(out, allow_incomplete=True)) == 4


def test_a_tar_with_one_name_twice_is_left_out_and_named(tmp_path: Path) -> None:
    make_tar(tmp_path / "0.tar", triples(0, 2))
    make_tar(tmp_path / "1.tar", [("a.jpg", b"x"), ("a.jpg", b"y")])
    make_tar(tmp_path / "2.tar", [("b.jpg", encoded_image(96, 128)), ("c.jpg", b""), ("b.png", b"y")])
    with pytest.raises(SourceError, match=r"2 of 3 parts could not be read\. .*1\.tar holds two members of one name"):
        encode(f"{tmp_path}/{{0..2}}.tar", tmp_path / "out")
    assert len(LatentDataset(tmp_path / "out", allow_incomplete=True)) == 2


def test_a_key_in_two_tars_is_an_error_naming_both(tmp_path: Path) -> None:
    for name in ("0", "1"):
        make_tar(tmp_path / f"{name}.tar", triples(0, 1))
    with pytest.raises(SourceError, match=r"'000000000': .*0\.tar/000000000\.jpg and .*1\.tar/000000000\.jpg"):
        encode(f"{tmp_path}/*.tar", tmp_path / "out")


def test_large_tars_wait_on_disk_and_come_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = str(make_tar(tmp_path / "a.tar", triples(0, 20)))
    encode(tar, tmp_path / "memory")
    monkeypatch.setattr(latent_store, "MAX_BYTES_IN_MEMORY", 3000)
    encode(tar, tmp_path / "disk")
    for name in ("part-000000.safetensors", "part-000000.parquet"):
        assert (tmp_path / "disk" / "parts" / name).read_bytes() == (tmp_path / "memory" / "parts" / name).read_bytes()
    assert len(list((tmp_path / "disk" / "parts").iterdir())) == 2


def test_verify_reads_the_tars_again_also_where_they_have_moved(tmp_path: Path) -> None:
    for number in range(2):
        make_tar(tmp_path / "old" / f"{number}.tar", triples(10 * number, 3))
    encode(f"{tmp_path}/old/*.tar", tmp_path / "out")
    report = verify_cache(tmp_path / "out", VerifyOptions(device="cpu"))
    assert report.ok
    assert len(report.scores) == 6
    (tmp_path / "old").rename(tmp_path / "new")
    moved = VerifyOptions(device="cpu", source=f"{tmp_path}/new/{{0..1}}.tar")
    assert len(verify_cache(tmp_path / "out", moved).scores) == 6


# --- over http -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)


def test_tars_are_read_by_range_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    make_tar(tmp_path / "0.tar", triples(0, 6))
    with serve(tmp_path) as server:
        assert encode(f"{server.url}/0.tar", tmp_path / "out").num_samples == 6
        assert sum(asked is not None for _, asked in server.ranges) > 1
        with pytest.raises(SourceError, match=r"There is no file http.*/9\.tar"):
            encode(f"{server.url}/9.tar", tmp_path / "none")


@pytest.mark.parametrize("with_ranges", [True, False])
def test_a_connection_that_breaks_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_ranges: bool
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    make_tar(tmp_path / "0.tar", triples(0, 6))
    with serve(tmp_path) as server:
        server.with_ranges = with_ranges
        server.cuts, server.times = {"0.tar": 7_000}, 3
        assert encode(f"{server.url}/0.tar", tmp_path / "out").num_samples == 6
        assert server.times == 0
    assert [sample["key"] for sample in LatentDataset(tmp_path / "out")] == [f"{number:09d}" for number in range(6)]


def test_a_connection_that_stays_broken_leaves_that_part_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 100_000)
    for number in range(2):
        make_tar(tmp_path / f"{number}.tar", triples(10 * number, 6))
    out = tmp_path / "out"
    with serve(tmp_path) as server:
        uri = f"{server.url}/{{0..1}}.tar"
        server.cuts = {"0.tar": 7_000}
        with pytest.raises(SourceError, match=r"1 of 2 parts could not be read\. .*0\.tar broke off at byte"):
            encode(uri, out)
        assert [sample["key"] for sample in LatentDataset(out, allow_incomplete=True)] == [
            f"{number:09d}" for number in range(10, 16)
        ]
        server.cuts = {}
        summary = encode(uri, out)
    assert (summary.encoded, summary.complete) == (6, True)
    assert sorted(sample["key"] for sample in LatentDataset(out)) == [
        f"{number:09d}" for number in (*range(6), *range(10, 16))
    ]
