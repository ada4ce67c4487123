"""What tables said is kept for the next run, and never taken for what they say now."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dcae_cache.cache import commits
from dcae_cache.cache.commits import split_by_commit
from dcae_cache.cache.known_parts import KnownParts, save_known_parts
from dcae_cache.cache.parts import PartContent, PartInfo, commit_part, read_part_info, table_path, write_table
from dcae_cache.cache.plan import Plan
from dcae_cache.files import sha256_of_file
from dcae_cache.ledger import Counts
from dcae_cache.records import Row
from helpers.plans import plan_of

FINGERPRINT = "f" * 64
NAMES = ("part-000000", "part-000001", "part-000002")


def rows_of(name: str, caption: str = "a caption") -> list[Row]:
    ok = Row(key=f"{name}/a", status="ok", bucket_height=64, bucket_width=64, row=0, source="a.jpg", caption=caption)
    return [ok, Row(key=f"{name}/b", status="skipped", reason="truncated", source="b.jpg", label="x")]


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Path, Plan]:
    """A cache of three parts whose tables were read, and what was read kept."""
    (tmp_path / "parts").mkdir()
    plan = plan_of(*"abcde")
    for number, name in enumerate(NAMES):
        rows = [replace(row, image=row.key) for row in rows_of(name)] if number == 1 else rows_of(name)
        tensors = {"latents.2x2": torch.randn(1, 2, 2, 2)}
        met = Counts(found=7, images=2) if number == 2 else None
        content = PartContent(name=name, entries_sha256=plan.digest(number), rows=rows, tensors=tensors, met=met)
        commit_part(tmp_path, content, {"fingerprint": FINGERPRINT}, 2)
    keep(tmp_path, plan)
    return tmp_path, plan


def keep(cache: Path, plan: Plan) -> None:
    infos, todo = split_by_commit(plan, cache, FINGERPRINT)
    assert not todo
    save_known_parts(cache, infos, {name: sha256_of_file(table_path(cache, name)) for name in NAMES})


def test_what_is_kept_is_what_the_tables_say(planned: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, plan = planned
    read = [read_part_info(cache, name) for name in NAMES]
    monkeypatch.setattr(commits, "read_part_info", lambda *_: pytest.fail("a table was read"))
    known, todo = split_by_commit(plan, cache, FINGERPRINT)
    assert (known, todo) == (read, [])
    assert [(info.with_caption, info.with_label) for info in known] == [(1, 1)] * 3
    assert [info.table.sha256 for info in known if info.table] == [
        sha256_of_file(table_path(cache, name)) for name in NAMES
    ]


def test_a_table_written_since_is_read(planned: tuple[Path, Plan]) -> None:
    """Even one of the same size and time."""
    cache, plan = planned
    path = table_path(cache, NAMES[1])
    before, info = path.stat(), read_part_info(cache, NAMES[1])
    assert info is not None
    write_table(cache, info, [replace(row, image=row.key) for row in rows_of(NAMES[1], caption="A CAPTION")])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    known = KnownParts(cache)
    assert [known.find(name) is None for name in NAMES] == [False, True, False]
    infos = split_by_commit(plan, cache, FINGERPRINT)[0]
    assert [info.table.sha256 is None for info in infos if info.table] == [False, True, False]


def test_a_table_that_is_gone_or_damaged_commits_nothing(planned: tuple[Path, Plan]) -> None:
    cache, plan = planned
    table_path(cache, NAMES[0]).unlink()
    path = table_path(cache, NAMES[2])
    data = bytearray(path.read_bytes())
    data[-20:] = b"\0" * 20
    path.write_bytes(data)
    infos, todo = split_by_commit(plan, cache, FINGERPRINT)
    assert ([info.name for info in infos], todo) == ([NAMES[1]], [0, 2])


def _other_release(path: Path) -> None:
    table = pa.ipc.open_file(path.read_bytes()).read_all().replace_schema_metadata({"creator": "dcae-cache 0.0"})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def _other_info(path: Path) -> None:
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(
            table.set_column(3, table.schema.field(3), pa.array(["[1]", "{", '{"dcae_cache.format": 3}']))
        )


def _other_sha256(path: Path) -> None:
    """What went into the index unnoticed."""
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table.set_column(2, table.schema.field(2), pa.array(["0" * 64] * 3)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"ARROW1", b"ARROW2")),
        _other_release,
        _other_info,
        _other_sha256,
    ],
)
def test_without_what_was_kept_tables_are_read(planned: tuple[Path, Plan], damage: Callable[[Path], None]) -> None:
    cache, plan = planned
    damage(cache / ".derived" / "parts.arrow")
    known = KnownParts(cache)
    assert all(known.find(name) is None for name in NAMES)
    assert split_by_commit(plan, cache, FINGERPRINT) == ([read_part_info(cache, name) for name in NAMES], [])
    keep(cache, plan)
    assert all(KnownParts(cache).find(name) for name in NAMES)


def test_nothing_is_written_where_nothing_changed(planned: tuple[Path, Plan]) -> None:
    cache, plan = planned
    kept = cache / ".derived" / "parts.arrow"
    before = kept.stat().st_ino, kept.stat().st_mtime_ns
    keep(cache, plan)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == before


def test_parts_made_by_this_run_are_kept_once_they_are_read(planned: tuple[Path, Plan]) -> None:
    """What a writer says of its own part is not taken for what lies on the disk."""
    cache, _ = planned
    made: list[PartInfo] = [replace(info, table=None) for name in NAMES if (info := read_part_info(cache, name))]
    save_known_parts(cache, made, {})
    assert len(KnownParts(cache)) == 0


def test_where_nothing_can_be_kept_nothing_fails(planned: tuple[Path, Plan]) -> None:
    cache, plan = planned
    (cache / ".derived" / "parts.arrow").unlink()
    (cache / ".derived").rmdir()
    (cache / ".derived").write_text("a file in its place")
    keep(cache, plan)
    assert len(KnownParts(cache)) == 0


def test_no_damaged_byte_is_believed(planned: tuple[Path, Plan]) -> None:
    """Whichever it is: what was read, or nothing."""
    cache, _ = planned
    kept = cache / ".derived" / "parts.arrow"
    data, read = kept.read_bytes(), [read_part_info(cache, name) for name in NAMES]
    for place in range(0, len(data), 7):
        kept.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        known = KnownParts(cache)
        assert all(known.find(name) in (None, info) for name, info in zip(NAMES, read, strict=True))
