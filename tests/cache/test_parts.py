"""Shards and tables: the bytes are the same every time, any safetensors and parquet reader can read them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from dcae_cache.cache.locks import locked
from dcae_cache.cache.moments import ChannelMoments
from dcae_cache.cache.parts import PartContent, commit_part, read_part_info, read_rows, shard_path, table_path
from dcae_cache.cache.safetensors_io import map_safetensors
from dcae_cache.errors import CacheError
from dcae_cache.files import remove_temporary_files, replace_atomically
from dcae_cache.records import Row

HEADER = {"fingerprint": "f" * 64, "format": "dcae-cache", "scaled": "true"}


def content(dtype: torch.dtype = torch.bfloat16) -> PartContent:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "latents.4x4": torch.randn(3, 2, 4, 4, generator=generator).to(dtype),
        "latents.2x8": torch.randn(1, 2, 2, 8, generator=generator).to(dtype),
    }
    rows = [
        Row(key=f"k{i}", status="ok", bucket_height=128, bucket_width=128, row=i, source=f"k{i}.jpg", caption="ä")
        for i in range(3)
    ]
    rows.insert(1, Row(key="bad", status="skipped", reason="truncated", detail="half a file", source="bad.jpg"))
    rows.append(Row(key="wide", status="ok", bucket_height=64, bucket_width=256, row=0, source="wide.jpg"))
    return PartContent(name="part-000000", entries_sha256="e" * 64, rows=rows, tensors=tensors)


def commit(folder: Path, **kind: torch.dtype) -> None:
    (folder / "parts").mkdir(parents=True)
    commit_part(folder, content(**kind), HEADER, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_safetensors_library_reads_what_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    commit(tmp_path, dtype=dtype)
    expected = content(dtype).tensors
    with safe_open(shard_path(tmp_path, "part-000000"), "pt") as file:
        assert file.metadata() == HEADER
        assert sorted(file.keys()) == sorted(expected)
        for name, tensor in expected.items():
            assert torch.equal(file.get_tensor(name), tensor)
    mapped = map_safetensors(shard_path(tmp_path, "part-000000"))
    assert all(torch.equal(mapped[name], tensor) for name, tensor in expected.items())


def test_the_same_part_gives_the_same_bytes(tmp_path: Path) -> None:
    commit(tmp_path / "a")
    commit(tmp_path / "b")
    for path in (shard_path, table_path):
        first, second = (path(tmp_path / side, "part-000000").read_bytes() for side in "ab")
        assert first == second


def test_info_is_what_was_committed(tmp_path: Path) -> None:
    commit(tmp_path)
    info = read_part_info(tmp_path, "part-000000")
    assert info is not None
    data = shard_path(tmp_path, "part-000000").read_bytes()
    assert (info.shard_num_bytes, info.shard_sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (info.num_samples, info.skipped) == (4, {"truncated": 1})
    assert info.buckets == {"128x128": 3, "64x256": 1}
    values = torch.cat([t.double().permute(1, 0, 2, 3).flatten(1) for t in content().tensors.values()], dim=1)
    assert info.moments.mean == pytest.approx(values.mean(dim=1).tolist(), rel=1e-12)
    assert info.moments.std == pytest.approx(values.std(dim=1, correction=0).tolist(), rel=1e-12)
    table = read_rows(tmp_path, "part-000000").to_pylist()
    assert [row["key"] for row in table] == ["k0", "bad", "k1", "k2", "wide"]
    assert table[1]["detail"] == "half a file"


def test_no_table_means_no_part(tmp_path: Path) -> None:
    assert read_part_info(tmp_path, "part-000000") is None


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign"])
def test_a_damaged_table_is_named(tmp_path: Path, damage: str) -> None:
    commit(tmp_path)
    path = table_path(tmp_path, "part-000000")
    if damage == "foreign":
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 100])
    with pytest.raises(CacheError, match=r"part-000000\.parquet is not a readable table"):
        read_part_info(tmp_path, "part-000000")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replace_atomically(target) as file:  # noqa: PT012 - the body is the point
        file.write(b"new")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".part-000000.parquet.tmp", "part-000000.parquet", ".hidden", "a.tmp"):
        (tmp_path / name).touch()
    assert remove_temporary_files(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.tmp", "part-000000.parquet"]


def test_a_lock_is_given_back_even_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


@given(st.lists(st.integers(min_value=1, max_value=4), min_size=1, max_size=6), st.integers(0, 2**31))
def test_moments_of_parts_merge_to_the_moments_of_all(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, 3, 2, 2, generator=generator) * 5 + 1 for size in sizes]
    merged = ChannelMoments.merge([ChannelMoments.of([tensor], 3) for tensor in tensors], 3)
    whole = torch.cat(tensors).double().permute(1, 0, 2, 3).flatten(1)
    assert merged.count == whole.shape[1]
    assert merged.mean == pytest.approx(whole.mean(dim=1).tolist(), rel=1e-9, abs=1e-12)
    assert merged.std == pytest.approx(whole.std(dim=1, correction=0).tolist(), rel=1e-9)


def test_moments_of_nothing() -> None:
    nothing = ChannelMoments.merge([], 4)
    assert (nothing.count, nothing.mean, nothing.std) == (0, [], [])
    assert ChannelMoments.from_json(nothing.to_json()) == nothing
