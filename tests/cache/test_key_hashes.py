"""Keys compared by numbers: exact, also where different keys have the same number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dcae_cache.cache.key_hashes import KeyHashes


def blocks_of(*blocks: list[str]) -> Iterator[pa.ChunkedArray]:
    return (pa.chunked_array([block], pa.string()) for block in blocks)


def first_letter(text: str) -> int:
    """A poor hash: of all keys that begin alike the same, until they are salted often enough to be told by length."""
    return ord(text[0]) if not text.startswith("++") else hash(text)


def test_repeated_keys_are_found_across_blocks_in_their_order() -> None:
    assert KeyHashes(lambda: blocks_of(["b", "a"], ["c", "a"], ["b"])).repeated == ["b", "a"]
    assert KeyHashes(lambda: blocks_of(["b", "a"], ["c"])).repeated == []
    assert KeyHashes(lambda: blocks_of()).repeated == []


def test_different_keys_of_one_number_are_no_repetition() -> None:
    hashes = KeyHashes(lambda: blocks_of(["apple", "avocado"], ["banana"]), first_letter)
    assert hashes.repeated == []
    assert len(set(hashes.numbers.tolist())) == 3
    found = hashes.find(hashes.of(next(blocks_of(["banana", "avocado", "cherry"]))), 0)
    assert found.tolist() == [2, 1, -1]


def test_repeated_keys_are_told_from_others_of_their_number() -> None:
    assert KeyHashes(lambda: blocks_of(["apple", "avocado"], ["apple"]), first_letter).repeated == ["apple"]


@given(st.lists(st.text(max_size=3), unique=True), st.lists(st.text(max_size=3)), st.integers(0, 5))
def test_keys_are_found_where_they_are(keys: list[str], wanted: list[str], expected: int) -> None:
    hashes = KeyHashes(lambda: blocks_of(keys[:2], keys[2:]))
    found = hashes.find(hashes.of(next(blocks_of(wanted))), expected)
    assert found.tolist() == [keys.index(key) if key in keys else -1 for key in wanted]
    assert found.dtype == np.int64
