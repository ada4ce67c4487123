"""What is wrong with a cache's own files is told once, and by the name of the file."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from dcae_cache.cache.finalize import index_of, write_index
from dcae_cache.cache.integrity import check_integrity
from dcae_cache.cache.parts import PARTS_FOLDER
from dcae_cache.cache.plan import PLAN_NAME
from dcae_cache.cache.recipe import ModelIdentity, recipe_of
from dcae_cache.config import EncodeConfig
from dcae_cache.records import Origin
from helpers.plans import plan_of


def planned(folder: Path) -> Path:
    """A cache without parts yet; returns its plan's file."""
    recipe = recipe_of(EncodeConfig(model="made"), ModelIdentity("made", None, None, "0" * 64, 32, 32, 0.5))
    plan = plan_of("a", "b")
    plan = type(plan)(plan.pages, recipe, Origin("/photos"))
    (folder / PARTS_FOLDER).mkdir()
    plan.save(folder)
    write_index(folder, index_of(folder, plan, recipe, []), [])
    return folder / PLAN_NAME


def test_a_plan_that_is_damaged_further_in_is_one_finding(tmp_path: Path) -> None:
    """Opening it reads the numbers of the parts alone: it must be read through."""
    path = planned(tmp_path)
    place = pq.read_metadata(path).row_group(0).column(1).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 20] = b"\xff" * 20
    path.write_bytes(content)
    found = [finding for finding in check_integrity(tmp_path) if "can't be read as a plan" in finding.what]
    assert [finding.where for finding in found] == ["plan.parquet"]


def test_a_missing_plan_is_one_finding(tmp_path: Path) -> None:
    planned(tmp_path).unlink()
    assert [(finding.where, finding.what) for finding in check_integrity(tmp_path)] == [("plan.parquet", "is missing")]
