"""xz streams in bounded memory: all that was packed comes out, and no archive says how much it takes."""

from __future__ import annotations

import io
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_cache.sources.xz import XzStream
from helpers.hostile import xz_with_dictionary

streams = st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 400), st.integers(0, 2)), min_size=1, max_size=4)


@settings(max_examples=50)
@given(streams, st.integers(1, 300))
def test_what_was_packed_comes_out(streams: list[tuple[bytes, int, int]], count: int) -> None:
    """Streams behind one another, some with padding behind them, which the library's own reader takes for damage."""
    packed = b"".join(lzma.compress(data * times) + bytes(4 * padding) for data, times, padding in streams)
    whole = b"".join(data * times for data, times, _ in streams)
    reader = io.BufferedReader(XzStream(io.BytesIO(packed)))
    assert b"".join(iter(lambda: reader.read(count), b"")) == whole


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=500), st.lists(st.integers(0, 600), min_size=1, max_size=6))
def test_any_place_is_found(data: bytes, places: list[int]) -> None:
    stream = XzStream(io.BytesIO(lzma.compress(data)))
    for place in places:
        assert stream.seek(place) == min(place, len(data))
        assert stream.read(5) == data[place : place + 5]
    assert stream.seek(-1, io.SEEK_END) == len(data) - 1


@pytest.mark.parametrize("cut", [7, 30, -1])
def test_what_is_cut_off_is_not_taken_for_the_end(cut: int) -> None:
    packed = lzma.compress(bytes(range(256)) * 100)
    with pytest.raises((EOFError, lzma.LZMAError)):
        io.BufferedReader(XzStream(io.BytesIO(packed[:cut]))).read()


def test_a_dictionary_of_gigabytes_is_refused() -> None:
    packed = xz_with_dictionary(b"x" * 1000, 40)  # 4 GiB
    with pytest.raises(lzma.LZMAError, match="Memory usage limit"):
        XzStream(io.BytesIO(packed)).read(1)
    largest = xz_with_dictionary(b"x" * 1000, 28)  # 64 MiB, of xz -9
    assert io.BufferedReader(XzStream(io.BytesIO(largest))).read() == b"x" * 1000
