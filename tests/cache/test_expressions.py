"""Conditions as text: what they mean, and that nonsense is named instead of run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_cache.cache.expressions import Condition, evaluate, mask
from dcae_cache.cache.rows_file import ROWS_SCHEMA
from dcae_cache.errors import UsageError

ROWS = {
    "key": pa.array(["a", "b", "c", "d"], pa.large_string()),
    "label": pa.array(["3", "cat", None, "3"], pa.large_string()),
    "caption": pa.array(["A cat, it's", "", None, "dög"], pa.large_string()),
    "width": pa.array([100, 200, 300, 100], pa.int32()),
    "height": pa.array([100, 100, 100, 200], pa.int32()),
    "status": pa.array(["ok"] * 4, pa.large_string()),
    "attributes.score": pa.array([0.5, None, 2, -1]),
    "attributes.nsfw": pa.array([True, False, None, False]),
    "attributes.captions": pa.array([["x", "y"], None, [], ["z"]]),
    "attributes.nothing": pa.nulls(4),
}


def table_of(names: Sequence[str]) -> pa.Table:
    """As a cache's: it has every column of the schema, and an attribute that no sample has is null."""
    empty = {name: pa.nulls(4, ROWS_SCHEMA.field(name).type if name in ROWS_SCHEMA.names else None) for name in names}
    return pa.table({name: ROWS.get(name, empty[name]) for name in names})


def rows(condition: str | pc.Expression) -> str:
    return "".join("abcd"[i] for i in mask(condition, table_of).nonzero()[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label == 3", "ad"),
        ("label = '3'", "ad"),
        ("3 == label", "ad"),
        ("label != 3", "b"),
        ("not label == 3", "b"),
        ("label in ['cat', 3]", "abd"),
        ("label not in (3)", "b"),
        ("label is null", "c"),
        ("label is not null", "abd"),
        ("label is null or label == 'cat'", "bc"),
        ("width in [100, 300]", "acd"),
        ("width > 100 and height < 200", "bc"),
        ("width > 100 or height > 100 and width == 100", "bcd"),
        ("(width > 100 or height > 100) and width == 100", "d"),
        ("aspect > 1", "bc"),
        ("aspect <= 1/2", "d"),
        ("pixels >= 20000", "bcd"),
        ("1 + 2 * 3 == 7 and -width < 0 and 7 - 2 - 1 == 4 and width / height / 2 == 0.5", "a"),
        ("--width == 100", "ad"),
        ("abs(attributes.score) >= 1", "cd"),
        ("attributes.score > -1e0", "ac"),
        ("attributes.nsfw", "a"),
        ("not attributes.nsfw", "bd"),
        ("attributes.nsfw is null", "c"),
        ("attributes.nothing > 1", ""),
        ("attributes.nothing is null", "abcd"),
        ("len(attributes.captions) > 0", "ad"),
        ("len(caption) == 3", "d"),
        ("caption == 'A cat, it''s'", "a"),
        ('caption == "A cat, it\'s"', "a"),
        ("contains(lower(caption), 'a CAT') or startswith(caption, 'd')", "d"),
        ("contains(lower(caption), 'a cat') or endswith(caption, 'g')", "ad"),
        ("matches(caption, '^d.g$')", "d"),
        ("upper(key) == 'A'", "a"),
        ("true", "abcd"),
        ("not not not false", "abcd"),
        ("(width > 150) == true", "bc"),
    ],
)
def test_meaning(text: str, expected: str) -> None:
    assert rows(text) == expected


def test_numbers_and_pyarrow_expressions() -> None:
    values = evaluate(Condition.parse("1 + 2 * (label == 3)"), table_of).to_pylist()
    assert values == [3, 1, None, 3]
    assert rows(pc.field("width") > 100) == "bc"
    assert Condition.parse("aspect > 1 and label == 'width'").columns == ("width", "height", "label")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "more at its end"),
        ("label ==", "more at its end"),
        ("label == 3 4", "an end before '4'"),
        ("labels == 3", "No column 'labels'"),
        ("label == cat", "No column 'cat'"),
        ("label == 'cat", "can't be read from"),
        ("width ; 1", "can't be read from"),
        ("(width > 1", "at its end"),
        ("label > 3", "compares text with number"),
        ("width == 'x'", "compares number with text"),
        ("width in ['x']", "numbers in the list"),
        ("width in 3", "a list in"),
        ("width in [width]", "numbers or text in the list"),
        ("width and true", "conditions on both sides"),
        ("label + 1 == 2", "numbers to calculate with"),
        ("width", "is no condition"),
        ("exec('x')", "no function exec"),
        ("len(width) > 1", "no function len"),
        ("matches(caption, '(') ", "can't be evaluated"),
        ("(" * 3000 + "true" + ")" * 3000, "levels deep"),
        ("__import__('os')", "no function __import__"),
    ],
)
def test_nonsense_is_named(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        mask(text, table_of)


words = ["and", "or", "not", "in", "is", "null", "(", ")", "[", "]", ",", "label", "width", "3", "'x'", "==", "<", "+"]


@settings(max_examples=150)
@given(st.one_of(st.lists(st.sampled_from([*words, "-", "/", "len", "aspect"]), max_size=12).map(" ".join), st.text()))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    with suppress(UsageError):
        assert len(mask(text, table_of)) == 4
