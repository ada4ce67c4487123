"""A flipped bit anywhere in a cache is found, and mended or named as not mendable."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from dcae_cache.cache.integrity import check_integrity
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.errors import CacheError
from helpers.images import encode, make_folder, tiny_config

FLIPS = int(os.environ.get("DCAE_CACHE_FLIPS", "24"))


def _findings(cache: Path) -> list[str]:
    try:
        return [str(finding) for finding in check_integrity(cache)]
    except CacheError as error:
        return [str(error)]


def _hashes(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((cache / "parts").iterdir())}


@pytest.mark.slow
def test_every_flipped_bit_is_found_and_mended(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 12)
    encode(source, tmp_path / "whole", part_size=4)
    expected = _hashes(tmp_path / "whole")
    draw = random.Random(0)
    options = RunOptions(device="cpu", workers=2, part_size=4, batch_size=3, repair=True)
    unmendable = 0
    for number in range(FLIPS):
        cache = shutil.copytree(tmp_path / "whole", tmp_path / f"flip{number}")
        # Shards, tables, plan and index; what else is derived is written anew by every run, and carries no hash.
        kinds = (".safetensors", ".parquet")
        files = sorted(path for path in cache.rglob("*") if path.suffix in kinds or path.name == "index.json")
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        place, bit = draw.randrange(len(data)), draw.randrange(8)
        data[place] ^= 1 << bit
        file.write_bytes(data)
        where = f"{file.name}, byte {place}, bit {bit}"
        assert _findings(cache), where
        try:
            encode_dataset(source, cache, tiny_config(), options)
        except CacheError as failure:
            if file.name != "plan.parquet" or "Restore it from a copy" not in str(failure):
                raise
            unmendable += 1
            continue
        assert _findings(cache) == [], where
        if file.name != "plan.parquet":  # an entry that looks new may get another part, and lose nothing
            assert _hashes(cache) == expected, where
        shutil.rmtree(cache)
    assert unmendable < FLIPS / 4
