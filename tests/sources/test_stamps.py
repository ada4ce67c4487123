"""The number that stands for a version where there is no modification time. Plans on disk hold it: it must stay."""

from __future__ import annotations

import os

import pytest

from dcae_cache.text import stamp_of


@pytest.mark.parametrize(
    ("text", "number"),
    [('"abc"', 3918729547203066649), ("", 8203414616412130826), ("größe", 7613846664397445119)],
)
def test_the_number_is_part_of_the_format(text: str, number: int) -> None:
    assert stamp_of(text) == number
    assert 0 <= number < 2**63


def test_names_that_are_no_utf8_have_one_too() -> None:
    assert stamp_of(os.fsdecode(b"caf\xe9.parquet")) >= 0
