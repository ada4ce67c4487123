"""Values as people and as JSON read and write them."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from dcae_cache.text import whole_number, without_infinity


def test_json_gets_null_for_what_it_has_no_number_for() -> None:
    inf, nan = float("inf"), float("nan")
    value = {"a": [1.5, inf, (nan, -inf)], "b": MappingProxyType({"c": nan, "d": True}), "e": "NaN", "f": None}
    plain = without_infinity(value)
    assert plain == {"a": [1.5, None, [None, None]], "b": {"c": None, "d": True}, "e": "NaN", "f": None}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("007", 7),
        ("12", 12),
        ("", None),
        ("-3", None),
        ("+3", None),
        ("1.0", None),
        ("٣", None),
    ],
)
def test_only_plain_digits_are_a_number(text: str, number: int | None) -> None:
    assert whole_number(text) == number
