"""What people's data does: the tests of each situation are there, and those that have no better place are here."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from dcae_cache import LatentDataset
from dcae_cache.config import RunOptions
from dcae_cache.encode.preview import preview_dataset
from helpers.cases import NODES, TESTS
from helpers.images import encode, make_folder, tiny_config

YEAR_2300 = 10_413_792_000  # seconds; in nanoseconds more than 64 bits hold


@pytest.mark.parametrize("node", NODES)
def test_its_test_is_there(node: str) -> None:
    path, _, name = node.partition("::")
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    assert name in {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}


def test_a_time_in_the_year_2300(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", 3)
    os.utime(source / "class1" / "img001.jpg", (YEAR_2300, YEAR_2300))
    assert preview_dataset(str(source), tiny_config(), RunOptions(device="cpu")).num_samples == 3
    assert encode(source, tmp_path / "out").encoded == 3
    assert {sample["key"] for sample in LatentDataset(tmp_path / "out")} == {f"class{i}/img00{i}" for i in range(3)}
    assert encode(source, tmp_path / "out").encoded == 0, "and it is recognised"
