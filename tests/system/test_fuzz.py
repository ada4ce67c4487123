"""Files that anyone may hand us: whatever their bytes are, reading them ends in CacheError or in what they say."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcae_cache.cache.index import load_index
from dcae_cache.cache.parts import read_part_info, read_rows
from dcae_cache.cache.plan import load_plan
from dcae_cache.cache.safetensors_io import map_safetensors
from dcae_cache.errors import CacheError

READERS: dict[str, Callable[[Path], Any]] = {
    "index.json": load_index,
    "plan.parquet": load_plan,
    "parts/part-000000.parquet": lambda cache: (read_part_info(cache, "part-000000"), read_rows(cache, "part-000000")),
    "parts/part-000000.safetensors": lambda cache: map_safetensors(cache / "parts" / "part-000000.safetensors"),
}
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4
)  # where, how many bytes go, what comes
QUIET = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _read(name: str, cache: Path, content: bytes) -> None:
    (cache / name).parent.mkdir(parents=True, exist_ok=True)
    (cache / name).write_bytes(content)
    try:
        READERS[name](cache)
    except CacheError as failure:
        if name not in str(failure) or "\n" in str(failure):
            raise


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("name", READERS)
@given(content=st.binary(max_size=300))
@QUIET
def test_any_bytes(name: str, content: bytes, scratch: Path) -> None:
    _read(name, scratch, content)


@pytest.mark.parametrize("name", READERS)
@given(edits=EDITS)
@QUIET
def test_edited_files(name: str, edits: list[tuple[float, int, bytes]], scratch: Path, cache: Path) -> None:
    content = bytearray((cache / name).read_bytes())
    for where, gone, new in edits:
        place = int(where * len(content))
        content[place : place + gone] = new
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _read(name, scratch, bytes(content))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "KiB more than before"


HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", 3]),
        "shape": st.lists(st.integers(-2, 2**40), max_size=4),
        "data_offsets": st.lists(st.integers(-8, 2**62), min_size=1, max_size=3),
    }
)


@given(header=HEADERS | st.dictionaries(st.sampled_from(["latents.4x4", "__metadata__", "x"]), ENTRY | HEADERS))
@QUIET
def test_any_shard_header(header: Any, scratch: Path) -> None:
    text = json.dumps(header).encode()
    _read("parts/part-000000.safetensors", scratch, len(text).to_bytes(8, "little") + text + bytes(64))
    shutil.rmtree(scratch)
