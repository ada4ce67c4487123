"""The derived file of all rows: made when it is missing or stale, safe for several processes, never in the way."""

from __future__ import annotations

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dcae_cache import LatentDataset
from dcae_cache.cache import rows_file
from dcae_cache.cache.commits import delete_cache
from dcae_cache.cache.integrity import check_integrity
from dcae_cache.cache.parts import table_path
from dcae_cache.errors import CacheError, UsageError
from dcae_cache.reader import memory, shard_maps
from helpers.latents import make_cache

PARTS = [{(32, 64): 2, (64, 32): 3}, {(32, 64): 4}]


def describe(number: int) -> dict[str, Any]:
    if number % 2:
        return {}
    return {"caption": f"Bild {number} ü", "attributes": f'{{"score": {number}, "a.b": "x"}}', "source_bytes": number}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "cache", PARTS, describe=describe)


def files(cache: Path) -> list[Path]:
    return sorted((cache / ".derived").glob("rows-*"))


@pytest.mark.parametrize("rows_per_batch", [2, 5, 2**17])
def test_columns_are_those_of_the_tables(cache: Path, rows_per_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_file, "ROWS_PER_BATCH", rows_per_batch)
    names = ("key", "caption", "source_bytes", "attributes.score", "attributes.a.b", "bucket_height", "row", "detail")
    dataset = LatentDataset(cache, columns=names)
    batch = dataset.__getitems__([8, 0, 5, 1]).collated
    assert batch["key"] == ["k8", "k0", "k5", "k1"]
    assert batch["caption"] == ["Bild 8 ü", "Bild 0 ü", "", ""]
    assert batch["source_bytes"].tolist() == [8, 0, -1, -1]
    assert batch["attributes.score"] == [8, 0, None, None]
    assert batch["attributes.a.b"] == ["x", "x", None, None]
    assert batch["row"].tolist() == [3, 0, 0, 1]
    assert batch["detail"] == [""] * 4
    assert batch["latents"][:, 0, 0, 0].tolist() == [8, 0, 5, 1]
    assert dataset.describe(-1) == dataset.describe(8) == {name: dataset[8][name] for name in names}
    assert dataset.numbers_of(["k7", "nothing", "k2"]) == {"k2": 2, "k7": 7}


def test_the_file_is_made_once(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        samples = list(pool.map(lambda _: LatentDataset(cache)[3]["key"], range(8)))
    assert samples == ["k3"] * 8
    (path,) = files(cache)
    made = path.stat().st_mtime_ns
    assert LatentDataset(cache)[0]["key"] == "k0"
    assert path.stat().st_mtime_ns == made
    assert not list(path.parent.glob("*.tmp"))


def test_an_edited_table_makes_it_anew(cache: Path) -> None:
    old = LatentDataset(cache)
    assert old[0]["caption"] == "Bild 0 ü"
    path = table_path(cache, "part-000000")
    table = pq.read_table(path)
    place = table.column_names.index("caption")
    pq.write_table(table.set_column(place, "caption", pa.array(["edited"] * table.num_rows)), path)
    assert LatentDataset(cache)[0]["caption"] == "edited"
    assert len(files(cache)) == 1  # the stale one is gone,
    assert old[0]["caption"] == "Bild 0 ü"  # and whoever reads it still can


def test_a_damaged_one_is_named_and_can_be_deleted(cache: Path) -> None:
    assert LatentDataset(cache)[0]["key"] == "k0"
    (path,) = files(cache)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CacheError, match=r"rows-.*Delete it"):
        _ = LatentDataset(cache)[0]
    path.unlink()
    assert LatentDataset(cache)[0]["key"] == "k0"


def test_a_folder_that_cannot_be_written_to(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert LatentDataset(cache)[0]["key"] == "k0"
    assert not files(cache)
    assert len(list(tmp_path.glob("dcae-cache-*/*/rows-*.arrow"))) == 1


def test_nothing_else_minds_it(cache: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert LatentDataset(cache)[0]["key"] == "k0"
    assert {path: path.read_bytes() for path in before} == before
    assert {finding.where for finding in check_integrity(cache)} == {"plan.parquet"}  # these caches have none
    shutil.copytree(cache, tmp_path / "copy")
    assert LatentDataset(tmp_path / "copy")[0]["key"] == "k0"
    delete_cache(cache)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_table_that_is_not_the_indexs_is_refused(cache: Path) -> None:
    path = table_path(cache, "part-000001")
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(CacheError, match=r"part-000001.*index.json says"):
        _ = LatentDataset(cache)[0]
    assert LatentDataset(cache, columns=())[8]["latents"].max() == 8  # latents alone need no table


def test_unknown_columns_are_refused_at_once(cache: Path) -> None:
    with pytest.raises(UsageError, match=r"No column 'nonsense'.*caption"):
        LatentDataset(cache, columns=("nonsense",))


def test_a_pickled_dataset_carries_no_maps(cache: Path) -> None:
    dataset = LatentDataset(cache)
    assert dataset[0]["key"] == "k0"
    assert len(pickle.dumps(dataset)) < 10_000
    assert pickle.loads(pickle.dumps(dataset))[8]["key"] == "k8"


def test_few_maps_are_kept_where_the_store_says_so(cache: Path) -> None:
    from dcae_cache.reader.store import LocalStore

    dataset = LatentDataset(LocalStore(cache, max_mapped=1))
    batch = dataset.__getitems__([5, 0, 6, 1, 7]).collated
    assert batch["latents"][:, 0, 0, 0].tolist() == [5, 0, 6, 1, 7]


@pytest.mark.parametrize("max_mapped", [1, 2, 100])
def test_threads_read_at_the_same_time(tmp_path: Path, max_mapped: int) -> None:
    """Also where parts are let go all the time, none is while a thread copies from it."""
    from dcae_cache.reader.store import LocalStore

    large = make_cache(tmp_path / "large", [{(1024, 1024): 3} for _ in range(6)])
    dataset = LatentDataset(LocalStore(large, max_mapped=max_mapped), columns=())

    def read(turn: int) -> bool:
        numbers = [(turn * 5 + i * 7) % 18 for i in range(12)]
        latents: torch.Tensor = dataset.__getitems__(numbers).collated["latents"]
        return bool((latents == torch.tensor(numbers).view(-1, 1, 1, 1)).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))


def test_threads_that_begin_with_a_bucket_at_the_same_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both make what copies its latents; what either was told of must be known afterwards."""
    both, first = Barrier(2), iter([True, True])

    class Slow(memory.Blocks):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            if next(first, False):
                both.wait(timeout=20)

    monkeypatch.setattr(shard_maps, "Blocks", Slow)
    dataset = LatentDataset(cache, columns=())
    assert len(dataset.shards._bases) == 2 * len(dataset.layout.starts)
    with ThreadPoolExecutor(2) as pool:
        read = list(pool.map(lambda number: dataset.stack([number])[0, 0, 0, 0].item(), [0, 5]))
    assert read == [0, 5]
    assert dataset.stack([0, 5, 6])[:, 0, 0, 0].tolist() == [0, 5, 6]
