"""What a source lists: kept in order, in bounded memory, and every key once."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile

import pytest

from dcae_cache.cache.listing import LISTING, list_entries
from dcae_cache.errors import CacheError, SourceError
from dcae_cache.records import Entry
from helpers.plans import entry


def test_duplicate_keys_name_both_places() -> None:
    twins = [entry("a"), entry("b")._replace(location="b.jpg"), entry("b")._replace(location="b.png")]
    with pytest.raises(SourceError, match=r"'b': b\.jpg and b\.png"):
        list_entries(twins)


def test_entries_come_back_in_their_order_whatever_the_pages() -> None:
    entries = [Entry(f"é{n}", f"é{n}.jpg", n, -n, n if n % 2 else None) for n in range(10)]
    for page_rows in (1, 3, 10, 100):
        listing = list_entries(entries, page_rows)
        assert [Entry(**row) for row in listing.whole().to_pylist()] == entries
    assert list_entries([]).whole() == LISTING.empty_table()


def test_keys_of_one_hash_are_no_duplicates() -> None:
    listing = list_entries(map(entry, ["a", "b", "c"]), 2, lambda text: 0 if len(text) == 1 else hash(text))
    assert listing.hashes.find(listing.hashes.of(listing.page(1)["key"]), 0).tolist() == [2]


def test_a_listing_that_fails_half_way_leaves_nothing_open() -> None:
    def entries() -> object:
        yield entry("a")
        raise SourceError("gone")

    with pytest.raises(SourceError, match="gone"):
        list_entries(entries())


@pytest.mark.parametrize("writes", [1, 4, 9])
def test_a_full_temporary_folder_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Whichever write it is that the disk has no room for: of the entries, or of what ends the file."""
    done: list[int] = []

    class Full(tempfile.SpooledTemporaryFile):  # type: ignore[type-arg]
        def write(self, data: bytes) -> int:
            done.append(len(data))
            if len(done) > writes:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr("dcae_cache.cache.listing.tempfile.SpooledTemporaryFile", Full)
    with pytest.raises(CacheError, match=r"listing of the source can't be kept in .*No space left.*TMPDIR"):
        list_entries([entry("a")])


def test_planning_and_resuming_take_bounded_memory() -> None:
    """By what a million entries more add to the peak of a process: 10 million stay below a gigabyte."""
    code = """
import pathlib, re, sys, tempfile
from dcae_cache.cache.commits import split_by_commit
from dcae_cache.cache.growth import grow_plan
from dcae_cache.cache.listing import list_entries
from dcae_cache.cache.plan import load_plan, make_plan
from dcae_cache.records import Entry, Origin

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

def listed(count):
    names = ((n, f"{n // 1000:06d}/{n:09d}") for n in range(count))
    return list_entries(Entry(name, name + ".jpg", 1000, 1_700_000_000_000_000_000 + 7 * n) for n, name in names)

def resume(count):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_plan(listed(count), {}, Origin("x"), 1024).save(folder)
        plan, changes = grow_plan(load_plan(folder), listed(count), 1024)
        assert (changes.new, changes.changed, changes.vanished) == (0, 0, 0)
        done, todo = split_by_commit(plan, folder, "none")
        assert not done and len(todo) == -(-count // 1024)

resume(300_000)
before = peak()
resume(600_000)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50  # MiB for 300,000 entries more; a table of them all took 180
