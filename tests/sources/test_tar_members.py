"""What people's tars hold: dots in keys, links, resource forks, several archives in one file, and no image is lost."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dcae_cache.errors import SampleSkipped, SourceError, UsageError
from dcae_cache.ledger import Counts
from dcae_cache.records import Notes, Part, Sample
from dcae_cache.sources import SourceOptions, open_source, refuse_options_without_effect
from helpers.tars import make_tar, triples


def read(uri: object, **options: Any) -> tuple[dict[str, Sample], Counts]:
    source = open_source(str(uri), SourceOptions(**options))
    parts = [Part(number, (entry,)) for number, entry in enumerate(source.entries())]
    refs = [ref for part in parts for ref in source.read(part)]
    found = {ref.key: ref.load() for ref in refs}
    assert len(found) == len(refs)
    for ref in refs:
        sample = found[ref.key]
        assert ref.notes() == Notes(sample.caption, sample.label, sample.attributes)
    counts = source.counts().total()
    assert counts.found == counts.images + counts.notes + counts.strays + counts.ignored.total()
    return found, counts


def test_dots_in_keys_are_found(tmp_path: Path) -> None:
    tar = make_tar(
        tmp_path / "a.tar",
        [
            ("22.05.png", b"one"),
            ("22.05.txt", b"in may"),
            ("v1.0.jpg", b"two"),
            ("v1.1.jpg", b"three"),
            ("x.jpg", b"four"),
            ("x.seg.png", b"mask"),
            ("y.photo.webp", b"five"),
        ],
    )
    found, counts = read(tar)
    assert {key: sample.data for key, sample in found.items()} == {
        "22.05": b"one",
        "v1.0": b"two",
        "v1.1": b"three",
        "x": b"four",
        "y": b"five",
    }
    assert found["22.05"].caption == "in may"
    assert (counts.split, counts.images, counts.notes, counts.ignored) == (3, 5, 1, {".seg.png": 1})


def test_which_dot_ends_a_key_can_be_said(tmp_path: Path) -> None:
    members = [("a.left.png", b"l"), ("a.right.png", b"r"), ("a.txt", b"both")]
    tar = make_tar(tmp_path / "a.tar", members)
    with pytest.raises(SampleSkipped, match=r"has the images left\.png, right\.png\. Name one .*`key_split` last"):
        read(tar)
    assert read(tar, image_column="left.png")[0]["a"].caption == "both"
    source = open_source(str(tar), SourceOptions(key_split="last"))
    refs = list(source.read(Part(0, tuple(source.entries()))))
    assert [ref.key for ref in refs] == ["a.left", "a.right", "a"]
    assert [ref.load().data for ref in refs[:2]] == [b"l", b"r"]
    assert source.counts().total().first_stray == "a.txt"


def test_a_tar_with_one_prefix_for_all_is_read_bit_by_bit(tmp_path: Path) -> None:
    members = [(f"v1.{number:04d}.{kind}", b"%d" % number) for number in range(300) for kind in ("jpg", "txt")]
    found, counts = read(make_tar(tmp_path / "a.tar", [*members, ("v1.0300.jpg", b"300")]))
    assert [sample.data for sample in found.values()] == [b"%d" % number for number in range(301)]
    assert list(found)[-1] == "v1.0300"
    assert found["v1.0299"].caption == "299"
    assert counts.images == 301


def test_what_macos_packs_beside_files_is_no_sample(tmp_path: Path) -> None:
    forks = [("._000000000.jpg", b"fork"), ("d/._x.png", b"fork"), ("__MACOSX/d/y.jpg", b"fork"), (".DS_Store", b"x")]
    found, counts = read(make_tar(tmp_path / "a.tar", [*forks, *triples(0, 2)]))
    assert list(found) == ["000000000", "000000001"]
    assert counts.ignored == {"resource fork": 3, "hidden": 1}


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_are_followed_within_the_tar(tmp_path: Path, kind: bytes, mode: Any) -> None:
    path = tmp_path / ("a.tar.gz" if mode == "w:gz" else "a.tar")
    with tarfile.open(path, mode) as archive:
        for name, target in (
            ("a.jpg", None),
            ("b.jpg", "a.jpg"),
            ("c.jpg", "nowhere.jpg"),
            ("d.jpg", "/etc/hostname"),
        ):
            info = tarfile.TarInfo(name)
            if target is None:
                info.size = 5
                archive.addfile(info, io.BytesIO(b"image"))
            else:
                info.type, info.linkname = kind, target
                archive.addfile(info)
    found, counts = read(path)
    assert {key: sample.data for key, sample in found.items()} == {"a": b"image", "b": b"image"}
    assert counts.ignored == {"link": 2}


@pytest.mark.parametrize("frames", [1, 2])
def test_zstandard_is_read(tmp_path: Path, frames: int) -> None:
    whole = make_tar(tmp_path / "a.tar", triples(0, 3)).read_bytes()
    pieces = [whole] if frames == 1 else [whole[:5000], whole[5000:]]
    packed = b"".join(pa.compress(piece, "zstd", asbytes=True) for piece in pieces)
    (tmp_path / "a.tar.zst").write_bytes(packed)
    found, _ = read(tmp_path / "a.tar.zst")
    assert found["000000002"].shard == "a"
    expected, _ = read(tmp_path / "a.tar")
    assert {key: sample.data for key, sample in found.items()} == {key: s.data for key, s in expected.items()}


def test_tars_one_behind_the_other_are_all_read(tmp_path: Path) -> None:
    pieces = [make_tar(tmp_path / f"{n}.tar", [(f"{n}.jpg", b"%d" % n)]).read_bytes() for n in range(3)]
    (tmp_path / "whole.tar").write_bytes(b"".join(pieces))
    assert list(read(tmp_path / "whole.tar")[0]) == ["0", "1", "2"]
    (tmp_path / "tail.tar").write_bytes(pieces[0] + b"no tar at all" * 100)
    assert list(read(tmp_path / "tail.tar")[0]) == ["0"]


def test_members_that_do_not_stand_together_are_named_with_what_helps(tmp_path: Path) -> None:
    images = [(f"{n}.jpg", b"x") for n in range(3)]
    texts = [(f"{n}.txt", b"text") for n in range(3)]
    tar = make_tar(tmp_path / "a.tar", [*images, *texts])
    with pytest.raises(SourceError, match=r"members of sample '0' don't stand together\. .* tar --sort=name"):
        read(tar)
    assert read(make_tar(tmp_path / "b.tar", sorted([*images, *texts])))[0]["2"].caption == "text"


def test_tars_that_begin_their_keys_anew_are_found_before_anything_is_read(tmp_path: Path) -> None:
    for number in range(3):
        make_tar(tmp_path / f"{number:05d}.tar", triples(0, 2))
    with pytest.raises(SourceError, match=r"have the key '000000000': .*00000\.tar.* and .*00001\.tar.*`key` shard"):
        list(open_source(f"{tmp_path}/*.tar").entries())
    found, _ = read(f"{tmp_path}/*.tar", key="shard")
    assert list(found) == [f"{tar:05d}/{key:09d}" for tar in range(3) for key in range(2)]
    (tmp_path / "sub").mkdir()
    os.rename(tmp_path / "00002.tar", tmp_path / "sub/00000.tar")
    with pytest.raises(SourceError, match=r"Two tars have the name 00000"):
        list(open_source(f"{tmp_path}/**/*.tar", SourceOptions(key="shard")).entries())


def test_the_named_field_goes_before_the_text_and_nothing_is_lost(tmp_path: Path) -> None:
    members = [
        ("a.jpg", b"x"),
        ("a.txt", b"short"),
        ("a.json", b'{"llava": "long", "caption": "mine"}'),
        ("a.cls", b"7"),
    ]
    tar = make_tar(tmp_path / "a.tar", [*members, ("b.jpg", b"x"), ("b.json", b'["one", "two"]')])
    named = read(tar, caption_column="llava")[0]["a"]
    assert (named.caption, named.label) == ("long", "7")
    assert named.attributes == {"caption": "mine", "txt": "short"}
    plain = read(tar)[0]
    assert (plain["a"].caption, plain["a"].attributes) == ("short", {"llava": "long", "caption": "mine"})
    assert (plain["b"].caption, plain["b"].attributes) == ("one", {"captions": ["one", "two"]})


def test_a_field_that_is_nowhere_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    make_tar(tmp_path / "0.tar", triples(0, 2))
    make_tar(tmp_path / "1.tar", [("last.jpg", b"x"), ("last.json", b'{"llava": "x"}')])
    with pytest.raises(SourceError, match=r"no field lava in .*; it has: txt, caption, key, status"):
        read(f"{tmp_path}/*.tar", caption_column="lava")
    assert read(f"{tmp_path}/*.tar", caption_column="llava")[0]["last"].caption == "x"


def test_captions_of_unknown_encoding_and_after_the_whole_name(tmp_path: Path) -> None:
    tar = make_tar(
        tmp_path / "a.tar", [("a.jpg", b"x"), ("a.jpg.txt", b"beside"), ("b.jpg", b"x"), ("b.txt", b"caf\xe9")]
    )
    found, _ = read(tar)
    assert found["a"].caption == "beside"
    assert (found["b"].caption, found["b"].attributes) == (None, {"caption_bytes": "Y2Fm6Q=="})
    assert read(tar, caption_encoding="cp1252")[0]["b"].caption == "café"


@pytest.mark.parametrize("option", [{"split": "train"}, {"streaming": True}, {"delimiter": ";"}])
def test_an_option_that_tars_cannot_honour_is_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    tar = make_tar(tmp_path / "a.tar", triples(0, 1))
    source = open_source(str(tar), SourceOptions(**option))
    with pytest.raises(UsageError, match=rf"`{next(iter(option))}` has no effect on input tars"):
        refuse_options_without_effect(source, SourceOptions(**option))


def test_a_time_beyond_64_bits_is_taken_for_the_last_that_fits(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", triples(0, 1))
    year_2300 = 10_413_792_000
    os.utime(tar, (year_2300, year_2300))
    (entry,) = open_source(str(tar)).entries()
    assert entry.mtime_ns == 2**63 - 1
