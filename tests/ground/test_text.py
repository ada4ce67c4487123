"""Text of others on its way to a terminal or a page, and JSON of others on its way in."""

from __future__ import annotations

import json

import pytest

from dcae_cache.text import MAX_JSON_DEPTH, parse_json, printable, printable_json

NASTY = "a\x1b]0;owned\x07\x9b31m\x7f\u202eb\r\n\u2028\ud800"


def test_nothing_steers_a_terminal() -> None:
    assert printable(NASTY) == r"a\x1b]0;owned\x07\x9b31m\x7f\u202eb\r\n\u2028\ud800"
    assert printable("a\tb\n", keep="\n\t") == "a\tb\n"
    assert printable("für 日本 👩‍👩‍👧 ∞") == "für 日本 👩‍👩‍👧 ∞"


def test_json_stays_json() -> None:
    values = {"key": NASTY[:-1], "n": [1, "é"]}
    text = printable_json(json.dumps(values, ensure_ascii=False, indent=1))
    assert json.loads(text) == values
    assert "\x9b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 100_000])
@pytest.mark.parametrize(("first", "last"), ["[]", ('{"a":', "}")])
def test_json_that_is_nested_absurdly_deep_is_refused(depth: int, first: str, last: str) -> None:
    with pytest.raises(ValueError, match="nested"):
        parse_json(first * depth + ("1" if first != "[" else "") + last * depth)


def test_json_that_is_nested_as_people_do_is_read() -> None:
    value: object = 1
    for _ in range(MAX_JSON_DEPTH - 1):
        value = [value, {"a": value}] if value == 1 else [value]
    assert parse_json(json.dumps(value)) == value
    assert parse_json(b'{"a": "\\u00e9"}') == {"a": "é"}
