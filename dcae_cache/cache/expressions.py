"""Conditions over a cache's rows, as text: "label == 'cat' and len(caption) > 20 and aspect < 2". Nothing is evaluated
as code: text becomes a pyarrow expression.

    or, and, not                     == != < <= > >=      in [1, 2], not in [...]      is null, is not null
    + - * /                          numbers, 'text' or "text" (a quote inside is doubled), true, false
    any column; attributes.NAME      aspect: width / height of the original; pixels: their product
    len(x) lower(x) upper(x) abs(x) contains(x, 'text') startswith(x, 'text') endswith(x, 'text') matches(x, 'regex')

A column of text compared with a number is compared with that number as text (labels are text: label == 3). A
comparison with a missing value holds neither way. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.acero as acero
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import UsageError
from .expression_parser import DERIVED, KEYWORDS, Parser, Token, tokens_of
from .rows_file import ATTRIBUTES, ROWS_SCHEMA

TableOf = Callable[[Sequence[str]], pa.Table]


@dataclass(frozen=True, slots=True)
class Condition:
    """An expression as text that can be parsed. ``columns``: those it names, and needs."""

    text: str
    tokens: tuple[Token, ...]
    columns: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Condition:
        """Raises UsageError, saying where, for what is no expression or names no column."""
        tokens = tuple(tokens_of(text))
        columns: list[str] = []
        for place, (kind, word) in enumerate(tokens):
            called = place + 1 < len(tokens) and tokens[place + 1] == ("sign", "(")
            if kind == "name" and word not in KEYWORDS and not called:
                columns += DERIVED.get(word, (word,))
        for name in columns:
            if name not in ROWS_SCHEMA.names and not name.startswith(ATTRIBUTES):
                raise UsageError(
                    f"No column {name!r} in {text!r}; there are {', '.join(ROWS_SCHEMA.names)}, attributes.NAME, "
                    "aspect and pixels. Text stands in quotes."
                )
        return Condition(text, tokens, tuple(dict.fromkeys(columns)))

    def arrow(self, schema: pa.Schema) -> pc.Expression:
        """As a pyarrow expression over columns of these types. Raises UsageError."""
        return Parser(self.text, self.tokens, schema).whole()


def evaluate(condition: Condition | pc.Expression, table_of: TableOf) -> pa.ChunkedArray:
    """The value of an expression in every row. ``table_of`` gives the columns of these names. Raises UsageError."""
    if isinstance(condition, Condition):
        table = table_of(condition.columns or ("status",))
        expression = condition.arrow(table.schema)
    else:
        table, expression = table_of(ROWS_SCHEMA.names), condition
    plan = [
        acero.Declaration("table_source", acero.TableSourceNodeOptions(table)),
        acero.Declaration("project", acero.ProjectNodeOptions([expression], ["value"])),
    ]
    try:
        return acero.Declaration.from_sequence(plan).to_table(use_threads=False)["value"]
    except (pa.ArrowException, ValueError, TypeError) as error:
        text = condition.text if isinstance(condition, Condition) else str(condition)
        raise UsageError(f"{text!r} can't be evaluated: {' '.join(str(error).split())}") from error


def mask(condition: str | Condition | pc.Expression, table_of: TableOf) -> NDArray[np.bool_]:
    """In which rows a condition holds; where a value is missing, it doesn't. Raises UsageError."""
    parsed = Condition.parse(condition) if isinstance(condition, str) else condition
    values = evaluate(parsed, table_of)
    if not pa.types.is_boolean(values.type):
        text = parsed.text if isinstance(parsed, Condition) else str(parsed)
        raise UsageError(f"{text!r} is no condition: it gives {values.type}, not true or false.")
    result: NDArray[np.bool_] = pc.fill_null(values, False).to_numpy()
    return result
