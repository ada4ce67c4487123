"""A cache that somebody else made can do nothing: no command runs, nothing outside it is read, one line says why."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcae_cache import LatentDataset
from dcae_cache.cache.index import load_index
from dcae_cache.cache.integrity import check_integrity
from dcae_cache.cache.known import is_known, remember
from dcae_cache.cache.parts import shard_path, table_path
from dcae_cache.cache.plan import PLAN_NAME
from dcae_cache.decode.image_files import decode_samples
from dcae_cache.errors import CacheError, DamagedIndexError, VerificationError
from dcae_cache.sources.base import SourceOptions
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.command import run
from helpers.false_caches import change_rows
from helpers.hostile import change_index, change_plan
from helpers.images import encode, make_folder

_opened: list[str] = []
_watching = False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in ("open", "os.listdir", "os.scandir", "subprocess.Popen", "os.system"):
        _opened.append(f"{event} {arguments[0]}")


sys.addaudithook(_hear)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Everything that is opened, listed or run meanwhile."""
    global _watching
    _opened.clear()
    _watching = True
    try:
        yield _opened
    finally:
        _watching = False


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "copy"))


def check(cache: Path, **options: object) -> list[str]:
    settings = {"device": "cpu", "samples": None} | options
    return [str(finding) for finding in verify_cache(cache, VerifyOptions(**settings)).findings]


def test_a_recorded_command_is_not_run(copy: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    change_plan(copy, source=f"pipe:touch {proof}; cat {tmp_path}/x.tar", options={"allow_pipe": True})
    with pytest.raises(VerificationError, match=r"command pipe:touch .* It was not run. Pass `allow_pipe`"):
        check(copy)
    done = run("verify", copy, "--device", "cpu", expect=1)
    assert "It was not run" in done.stderr
    assert not proof.exists()


def test_a_recorded_command_is_run_where_the_person_allows_it(copy: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    change_plan(copy, source=f"pipe:touch {proof}")
    change_plan(copy, entries=lambda rows: [row.update(location=f"pipe:touch {proof}") for row in rows])
    check(copy, allowed=SourceOptions(allow_pipe=True))
    assert proof.exists()


@pytest.mark.parametrize(
    "place", ["{outside}", "{outside}/*.tar", "https://example.invalid/a.tar", "file://{outside}/a.tar"]
)
def test_a_recorded_place_that_nobody_named_is_not_looked_at(copy: Path, tmp_path: Path, place: str) -> None:
    outside = make_folder(tmp_path / "outside", 1)
    change_plan(copy, source=place.format(outside=outside))
    with watched() as opened, pytest.raises(VerificationError, match="It was not made here by you"):
        check(copy)
    assert not [line for line in opened if "outside" in line or line.startswith("subprocess")]


def test_entries_stay_in_the_folder_that_was_named(copy: Path, photos: Path, tmp_path: Path) -> None:
    outside = make_folder(tmp_path / "outside", 2)
    places = [str(outside / "class0/img000.jpg"), os.path.relpath(outside / "class1/img001.jpg", photos)]

    def point_out(rows: list[dict[str, Any]]) -> None:
        for row, place in zip(rows, [*places, f"file:{places[0].replace('/', '%2F')}"], strict=False):
            row["location"] = place

    change_plan(copy, entries=point_out)
    with watched() as opened:
        found = check(copy, source=str(photos))
    assert sum("is not in the folder" in line for line in found) == 3
    assert not [line for line in opened if "outside" in line]


def test_tars_that_the_source_does_not_name_are_not_opened(tmp_path: Path) -> None:
    from helpers.tars import make_tar, triples

    make_tar(tmp_path / "named/a.tar", triples(0, 2))
    encode(tmp_path / "named/a.tar", tmp_path / "out")
    make_tar(tmp_path / "outside/a.tar", triples(0, 2))
    change_plan(tmp_path / "out", entries=lambda rows: rows[0].update(location=str(tmp_path / "outside/a.tar")))
    with watched() as opened:
        found = check(tmp_path / "out")  # its source was named by this person: it is the entry that wasn't
    assert any("is not among the tars" in line for line in found), found
    assert not [line for line in opened if "outside" in line]


@pytest.mark.parametrize(("column", "value"), [("repo_id", "evil/model"), ("model_source", "/outside/model")])
def test_a_recorded_model_that_nobody_named_is_not_opened(copy: Path, column: str, value: str, tmp_path: Path) -> None:
    def name(index: dict[str, Any]) -> None:
        index["recipe"][column] = value
        if column in index["model"]:
            index["model"][column] = value

    change_index(copy, name)
    for work in (lambda: check(copy), lambda: decode_samples(copy, ["*"], tmp_path / "images")):
        with watched() as opened, pytest.raises(VerificationError, match=r"neither fetched nor opened"):
            work()
        assert not [line for line in opened if value in line]


def _set(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(index: Any) -> None:
        for step in path[:-1]:
            index = index[step]
        index[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("parts", 0, "name", value="../../outside/part-000000"), r"parts\[0\].name is '../../outside"),
        (_set("parts", 0, "buckets", value={"9x9x9": 1}), r"parts\[0\].buckets is"),
        (_set("parts", value=7), "parts is 7, not a list"),
        (_set("totals", "num_samples", value="many"), "totals.num_samples is 'many'"),
        (_set("totals", value=[]), r"totals is \[\], not an object"),
        (_set("recipe", "flip", value="yes"), "recipe.flip is 'yes'"),
        (_set("recipe", "resolution", value=10**40), "recipe.resolution is 1000"),
        (_set("latent", "dtype", value=["bf16"]), "latent.dtype is"),
        (_set("latent", "spatial_compression_ratio", value=0), "latent.spatial_compression_ratio is 0"),
        (_set("latent", "scaling_factor", value="0.3"), "latent.scaling_factor is '0.3'"),
        (_set("statistics", "mean", value=[None]), r"statistics.mean\[0\] is None"),
        (_set("source", "uri", value=3), "source.uri is 3"),
        (lambda index: index.pop("model"), "model is missing"),
    ],
)  # fmt: skip
def test_an_index_of_another_shape_is_refused_by_name(
    copy: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    change_index(copy, change)
    with (
        watched() as opened,
        pytest.raises(DamagedIndexError, match=f"index.json is not an index of dcae-cache: .*{said}"),
    ):
        load_index(copy)
    assert not [line for line in opened if "outside" in line]


def test_files_that_are_no_files_are_not_waited_for(copy: Path) -> None:
    for path in (shard_path(copy, "part-000000"), table_path(copy, "part-000001"), copy / PLAN_NAME):
        path.unlink()
        os.mkfifo(path)
    found = [str(finding) for finding in check_integrity(copy)]
    assert sum("not a regular file" in line for line in found) == 3
    (copy / "index.json").unlink()
    (copy / "index.json").symlink_to("/dev/zero")
    with pytest.raises(CacheError, match="not a regular file"):
        load_index(copy)


def test_a_table_that_stands_for_terabytes_is_refused(copy: Path) -> None:
    """A million rows with the same caption of a megabyte: two kilobytes of parquet."""
    path = table_path(copy, "part-000000")
    table = pq.read_table(path)
    rows = 1_000_000
    columns = {field.name: pa.nulls(rows, field.type) for field in table.schema}
    for name in ("key", "status", "source"):
        columns[name] = pa.DictionaryArray.from_arrays(
            pa.array([0]).take(pa.array([0] * rows)).cast(pa.int32()), pa.array(["ok"])
        )
    index = pa.array([0] * rows, pa.int32())
    columns["caption"] = pa.DictionaryArray.from_arrays(index, pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table(columns).replace_schema_metadata(table.schema.metadata), path, compression="zstd")
    assert path.stat().st_size < 10**5
    change_rows_of_index(copy, path)
    found = [str(finding) for finding in check_integrity(copy)]
    assert any("part-000000" in line and "far more than its size makes likely" in line for line in found)


def change_rows_of_index(cache: Path, path: Path) -> None:
    from dcae_cache.files import sha256_of_file

    def renew(index: dict[str, Any]) -> None:
        index["parts"][0]["table_sha256"] = sha256_of_file(path)

    change_index(cache, renew)


def test_nonsense_in_a_table_is_a_finding(copy: Path) -> None:
    change_rows(copy, "part-000000", lambda rows: rows[0].update(row=None, bucket_height=-5))
    assert any("part-000000" in str(finding) for finding in check_integrity(copy))


def test_nothing_is_written_through_a_link_that_was_left_there(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "photos", 2), tmp_path / "out"
    encode(source, out)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (".index.json.tmp", ".skipped.jsonl.tmp", ".plan.parquet.tmp", "parts/.part-000001.parquet.tmp"):
        (out / name).symlink_to(victim)
    make_folder(source, 2, first=2)
    encode(source, out)
    assert victim.read_text() == "mine"
    assert len(LatentDataset(out)) == 4


def test_what_a_person_named_is_remembered_and_nothing_secret_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert not is_known("https://h/a.tar")
    remember("https://me:hunter2@h/a.tar?sig=S3CRET", "/data/images")
    assert is_known("https://h/a.tar?sig=other")
    assert is_known("/data/images")
    assert not is_known("/data")
    (file,) = (tmp_path / "state").rglob("named-places")
    remember("/data/images")
    assert len(file.read_text().split()) == 2
    assert b"data" not in file.read_bytes()
    file.parent.chmod(0o777)
    assert not is_known("/data/images"), "others could have written it"


def test_a_home_that_cannot_be_written_to_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember("/data/images")
    assert not is_known("/data/images")
