"""Exports that are stopped: the same command again ends in the files of an undisturbed one, and no other command may
go on with them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dcae_cache import LatentDataset
from dcae_cache.cache.locks import locked
from dcae_cache.errors import CacheError, CacheLockedError, UsageError
from dcae_cache.export.exporter import ExportOptions
from dcae_cache.export.journal import JOURNAL_NAME
from dcae_cache.export.run import EXPORTERS, export_cache
from helpers.faults import DIED, export_in_process, hashes

BUILT_IN = [name for name in EXPORTERS if name not in ("mds", "wids")]


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("to", BUILT_IN)
def test_resumes_behind_the_last_whole_shard(squares: Path, tmp_path: Path, to: str) -> None:
    options = ExportOptions(shard_size=6)
    export_cache(squares, to, tmp_path / "whole", options)

    def stop(done: int, total: int) -> None:
        if done >= 15:  # in the third of four shards
            raise Stopped

    with pytest.raises(Stopped):
        export_cache(squares, to, tmp_path / "out", options, stop)
    seen: list[int] = []
    summary = export_cache(squares, to, tmp_path / "out", options, lambda done, total: seen.append(done))
    assert (summary.shards_reused, summary.num_shards) == (2, 4)
    assert min(seen) == 12
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    again = export_cache(squares, to, tmp_path / "out", options)
    assert again.shards_reused == 4
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("to", BUILT_IN)
def test_death_at_every_kind_of_write(squares: Path, tmp_path: Path, to: str) -> None:
    LatentDataset(squares).table(["key"])  # the reader's own file of rows is written once, and not to be counted
    code, total = export_in_process(squares, to, tmp_path / "whole")
    assert (code, total > 20) == (0, True)
    expected = hashes(tmp_path / "whole")
    for event in sorted(random.Random(to).sample(range(total), 10)):
        out = tmp_path / "out"
        assert export_in_process(squares, to, out, die_at=event)[0] == DIED, event
        assert export_in_process(squares, to, out)[0] == 0, event
        assert hashes(out) == expected, event
        shutil.rmtree(out)


def test_a_line_of_the_journal_cut_in_half_is_written_again(squares: Path, tmp_path: Path) -> None:
    options = ExportOptions(shard_size=8)
    export_cache(squares, "webdataset", tmp_path, options)
    expected = hashes(tmp_path)
    journal = tmp_path / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes()[:-5])
    assert export_cache(squares, "webdataset", tmp_path, options).shards_reused == 2
    assert hashes(tmp_path) == expected


def test_a_damaged_journal_is_refused(squares: Path, tmp_path: Path) -> None:
    export_cache(squares, "webdataset", tmp_path)
    (tmp_path / JOURNAL_NAME).write_bytes(b"{\n[]\n")
    with pytest.raises(CacheError, match="It says which files are whole"):
        export_cache(squares, "webdataset", tmp_path)


def test_another_export_does_not_go_on(squares: Path, sana: Path, tmp_path: Path) -> None:
    export_cache(squares, "webdataset", tmp_path, ExportOptions(limit=5))
    before = hashes(tmp_path)
    with pytest.raises(UsageError, match=r"another export: limit: 5 -> 6\. Nothing was written"):
        export_cache(squares, "webdataset", tmp_path, ExportOptions(limit=6))
    with pytest.raises(UsageError, match="format: webdataset -> npy"):
        export_cache(squares, "npy", tmp_path)
    with pytest.raises(UsageError, match="the cache has changed since"):
        export_cache(sana, "webdataset", tmp_path, ExportOptions(limit=5))
    assert hashes(tmp_path) == before


def test_folders_of_others_are_left_alone(squares: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other files \(notes\.txt\)"):
        export_cache(squares, "npy", tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        export_cache(squares, "npy", tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_second_export_at_the_same_time_is_refused(squares: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CacheLockedError, match="Another run is writing"):
        export_cache(squares, "npy", tmp_path)


def test_a_cache_that_changes_meanwhile_is_noticed(squares: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(squares, cache)

    def change(done: int, total: int) -> None:
        table = cache / "parts" / "part-000000.parquet"
        table.write_bytes(table.read_bytes() + b" ")

    with pytest.raises(CacheError, match="was changed while it was exported"):
        export_cache(cache, "webdataset", tmp_path / "out", progress=change)


def test_a_disk_that_is_too_small_is_noticed_first(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=9))
    with pytest.raises(CacheError, match="Free some space"):
        export_cache(squares, "npy", tmp_path / "out")


def test_the_order_of_a_shuffle_follows_from_its_seed(squares: Path, tmp_path: Path) -> None:
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        export_cache(squares, "edm2", tmp_path / name, ExportOptions(shuffle=seed))
        orders.append(hashes(tmp_path / name)["latents.zip"])
    assert orders[0] == orders[1] != orders[2]


def test_the_journal_says_what_the_export_is_of(squares: Path, tmp_path: Path) -> None:
    export_cache(squares, "webdataset", tmp_path, ExportOptions(where="label == 'class1'", shard_size=3))
    first, *shards = map(json.loads, (tmp_path / JOURNAL_NAME).read_bytes().splitlines())
    assert (first["format"], first["where"]) == ("webdataset", "label == 'class1'")
    assert [shard["num_samples"] for shard in shards] == [3, 3, 1]
