"""docs/format.md is what others write readers from: its tables and a cache made now name the same things."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

import dcae_cache
from helpers.images import encode

PACKAGE = Path(dcae_cache.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "format.md").read_text(encoding="utf-8")
PART = "part-000000"


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/format.md has no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables' rows, headings left out."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


@pytest.fixture
def table(cache: Path) -> pa.Schema:
    return pq.read_schema(cache / "parts" / f"{PART}.parquet")


def test_the_columns_are_those_of_the_page(table: pa.Schema, photos: Path, tmp_path: Path) -> None:
    """Those that any cache has, and the three more of one with several rows an image."""
    columns, _ = section("Tables: `parts/part-N.parquet`").split("Schema metadata", 1)
    described = [(name, row[1]) for row in rows(columns) for name in names(row[0])]
    more = ["image", "resolution", "crop"]
    assert [name for name, _ in described[-3:]] == more
    assert described[:-3] == [(field.name, str(field.type)) for field in table]
    encode(photos, tmp_path / "out", crops=2)
    of_several = pq.read_schema(tmp_path / "out" / "parts" / f"{PART}.parquet")
    assert sorted(described) == sorted((field.name, str(field.type)) for field in of_several)
    assert {b"dcae_cache.views"} == set(of_several.metadata) - set(table.metadata)


def test_the_schema_metadata_is_that_of_the_page(table: pa.Schema) -> None:
    _, metadata = section("Tables: `parts/part-N.parquet`").split("Schema metadata", 1)
    described = {f"dcae_cache.{name}" for row in rows(metadata) for name in names(row[0])}
    assert described == {key.decode() for key in table.metadata}


def test_the_plan_is_that_of_the_page(cache: Path) -> None:
    schema = pq.read_schema(cache / "plan.parquet")
    text = section("`plan.parquet`")
    assert set(re.findall(r"`(dcae_cache\.\w+)`", text)) == {key.decode() for key in schema.metadata}
    assert set(schema.names) <= set(names(text))


def test_the_index_is_that_of_the_page(cache: Path) -> None:
    index = json.loads((cache / "index.json").read_bytes())
    described = {name.split(".")[0]: names(row[1]) for row in rows(section("`index.json`")) for name in names(row[0])}
    assert set(described) == set(index)
    for key in ("model", "latent", "totals", "statistics"):
        told = set(described[key]) - {"bf16", "fp16", "fp32", "latents"}
        assert told == set(index[key]), key
    assert set(index["parts"][0]) <= set(described["parts"])


def test_the_shard_header_is_that_of_the_page(cache: Path) -> None:
    text = section("Shards: `parts/part-N.safetensors`").split("`__metadata__`")[1]
    with safe_open(cache / "parts" / f"{PART}.safetensors", "pt") as shard:
        assert set(names(text)) == set(shard.metadata())


def test_every_reason_is_on_the_page() -> None:
    """Reasons are words of the format: people count and filter by them."""
    told = set(names(PAGE.split("Reasons: ")[1].split("Later releases")[0]))
    given = {"not_finite", "out_of_range", "no_memory", "damaged"}  # an encoder's, and a constant of the sources
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("SampleSkipped"):
                given |= {
                    inner.value
                    for inner in ast.walk(node.args[0])
                    if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
                }
    assert given == told
