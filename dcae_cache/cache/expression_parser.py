"""Text of a condition to a pyarrow expression, by recursive descent. The language is described in expressions.py.

Knows nothing of tables but the types of their columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UsageError

Token = tuple[str, str]  # kind ("number", "text", "name" or "sign") and what stands there

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|(?P<text>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")"
    r"|(?P<name>[^\W\d][\w]*(?:\.[\w-]+)*)|(?P<sign>==|!=|<=|>=|[-+*/()\[\],<>=]))"
)
_COMPARISONS: dict[str, Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    "==": lambda a, b: a == b,
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_ARITHMETIC: dict[str, Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
_OF_TEXT = {
    "contains": pc.match_substring,
    "startswith": pc.starts_with,
    "endswith": pc.ends_with,
    "matches": pc.match_substring_regex,
}
DERIVED = {"aspect": ("width", "height"), "pixels": ("width", "height")}
KEYWORDS = {"and", "or", "not", "in", "is", "null", "true", "false"}
_MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class _Value:
    """Part of an expression: what pyarrow evaluates, and of what kind it is."""

    kind: str  # "number", "text", "bool" or "list"
    expression: pc.Expression
    literal: Any = None  # its value, where it is written in the text


def tokens_of(text: str) -> list[Token]:
    """Raises UsageError where the text has no meaning."""
    found, place = [], 0
    while place < len(text.rstrip()):
        match = _TOKEN.match(text, place)
        if match is None:
            raise UsageError(f"{text!r} can't be read from {text[place:].strip()[:20]!r} on. {_HELP}")
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        place = match.end()
    return found


_HELP = "An example: label == 'cat' and len(caption) > 20 and aspect < 2"


class Parser:
    """Recursive descent, one method a level of precedence."""

    def __init__(self, text: str, tokens: tuple[Token, ...], schema: pa.Schema) -> None:
        self._text, self._tokens, self._schema = text, tokens, schema
        self._place = 0
        self._depth = 0

    def whole(self) -> pc.Expression:
        """Of all tokens. Raises UsageError."""
        value = self._either()
        if self._place < len(self._tokens):
            raise self._wrong(f"an end before {self._tokens[self._place][1]!r}")
        return value.expression

    def _either(self) -> _Value:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UsageError(f"{self._text[:60]!r}... is nested more than {_MAX_DEPTH} levels deep.")
        value = self._both()
        while self._took("or"):
            value = _Value("bool", self._condition(value) | self._condition(self._both()))
        self._depth -= 1
        return value

    def _both(self) -> _Value:
        value = self._negated()
        while self._took("and"):
            value = _Value("bool", self._condition(value) & self._condition(self._negated()))
        return value

    def _negated(self) -> _Value:
        negations = 0
        while self._took("not"):
            negations += 1
        value = self._compared()
        for _ in range(min(negations, 2 - negations % 2)):
            value = _Value("bool", ~self._condition(value))
        return value

    def _compared(self) -> _Value:
        left = self._sum()
        if self._took("is"):
            negated = self._took("not")
            self._expect("null")
            missing = left.expression.is_null()
            return _Value("bool", ~missing if negated else missing)
        negated = self._took("not")
        if negated or self._peek() == "in":
            self._expect("in")
            among = self._among(left)
            return _Value("bool", ~among if negated else among)
        if self._peek() in _COMPARISONS:
            sign = self._next()[1]
            a, b = self._alike(left, self._sum(), sign)
            return _Value("bool", _COMPARISONS[sign](a, b))
        return left

    def _among(self, left: _Value) -> pc.Expression:
        closing = {"[": "]", "(": ")"}.get(self._peek() or "")
        if closing is None:
            raise self._wrong("a list in [ ]")
        self._next()
        values = []
        while not self._took(closing):
            item = self._sum()
            if item.literal is None:
                raise self._wrong("numbers or text in the list")
            values.append(str(item.literal) if left.kind == "text" else item.literal)
            if self._peek() != closing:
                self._expect(",")
        if left.kind == "number" and any(isinstance(value, str) for value in values):
            raise self._wrong("numbers in the list, as the column holds numbers")
        kind = pa.large_string() if left.kind == "text" else pa.float64() if left.kind == "number" else None
        subject = left.expression.cast(kind) if kind is not None else left.expression
        missing = pc.scalar(pa.scalar(None, pa.bool_()))
        return pc.if_else(subject.is_valid(), subject.isin(pa.array(values, kind)), missing)

    def _alike(self, left: _Value, right: _Value, sign: str) -> tuple[pc.Expression, pc.Expression]:
        """Both sides as pyarrow compares them."""
        kinds = left.kind, right.kind
        if left.kind == right.kind:
            return left.expression, right.expression
        for one, other in ((left, right), (right, left)):
            if (
                one.kind == "text"
                and other.kind == "number"
                and other.literal is not None
                and sign in ("==", "=", "!=")
            ):
                text = pc.scalar(str(other.literal))
                return (one.expression, text) if one is left else (text, one.expression)
        raise UsageError(f"{self._text!r} compares {kinds[0]} with {kinds[1]} by {sign}.")

    def _sum(self) -> _Value:
        value = self._product()
        while (sign := self._peek()) in ("+", "-"):
            value = self._calculated(value, str(sign), self._product)
        return value

    def _product(self) -> _Value:
        value = self._signed()
        while (sign := self._peek()) in ("*", "/"):
            value = self._calculated(value, str(sign), self._signed)
        return value

    def _calculated(self, left: _Value, sign: str, following: Callable[[], _Value]) -> _Value:
        self._next()
        right = following()
        sides = [self._number(side).expression.cast(pa.float64()) for side in (left, right)]
        return _Value("number", _ARITHMETIC[sign](*sides))

    def _signed(self) -> _Value:
        negative = False
        while self._peek() in ("-", "+"):
            negative ^= self._next()[1] == "-"
        value = self._atom()
        if not negative:
            return value
        if value.literal is not None and value.kind == "number":
            return _Value("number", pc.scalar(-value.literal), -value.literal)
        return _Value("number", pc.negate(self._number(value).expression.cast(pa.float64())))

    def _atom(self) -> _Value:
        kind, word = self._next()
        if kind == "number":
            number = int(word) if word.isdigit() else float(word)
            if isinstance(number, int) and number >= 2**63:
                number = float(number)
            return _Value("number", pc.scalar(number), number)
        if kind == "text":
            quote = word[0]
            text = word[1:-1].replace(quote * 2, quote)
            return _Value("text", pc.scalar(text), text)
        if word == "(":
            value = self._either()
            self._expect(")")
            return value
        if word in ("true", "false"):
            return _Value("bool", pc.scalar(word == "true"), word == "true")
        if kind != "name" or word in KEYWORDS:
            raise self._wrong(f"a value in place of {word!r}")
        return self._call(word) if self._peek() == "(" else self._named(word)

    def _named(self, name: str) -> _Value:
        if name in DERIVED:
            width, height = (pc.field(side).cast(pa.float64()) for side in DERIVED[name])
            return _Value("number", width / height if name == "aspect" else width * height)
        kind = self._schema.field(name).type
        if pa.types.is_null(kind):  # an attribute that no sample has
            return _Value("number", pc.field(name).cast(pa.float64()))
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _Value("text", pc.field(name).cast(pa.large_string()))
        if pa.types.is_boolean(kind):
            return _Value("bool", pc.field(name))
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _Value("number", pc.field(name).cast(pa.float64()) if name != "key_hash" else pc.field(name))
        return _Value("list", pc.field(name))

    def _call(self, name: str) -> _Value:
        self._expect("(")
        arguments = [self._either()]
        while self._took(","):
            arguments.append(self._either())
        self._expect(")")
        kinds = [argument.kind for argument in arguments]
        first = arguments[0].expression
        if name == "len" and kinds == ["text"]:
            return _Value("number", pc.utf8_length(first).cast(pa.float64()))
        if name == "len" and kinds == ["list"]:
            return _Value("number", pc.list_value_length(first).cast(pa.float64()))
        if name in ("lower", "upper") and kinds == ["text"]:
            return _Value("text", pc.utf8_lower(first) if name == "lower" else pc.utf8_upper(first))
        if name == "abs" and kinds == ["number"]:
            return _Value("number", pc.abs(first))
        if name in _OF_TEXT and kinds == ["text", "text"] and arguments[1].literal is not None:
            return _Value("bool", _OF_TEXT[name](first, arguments[1].literal))
        raise UsageError(
            f"{self._text!r}: no function {name}({', '.join(kinds)}); there are len, lower, upper, abs, "
            f"{', '.join(_OF_TEXT)}."
        )

    def _condition(self, value: _Value) -> pc.Expression:
        if value.kind != "bool":
            raise self._wrong("conditions on both sides of and, or, not")
        return value.expression

    def _number(self, value: _Value) -> _Value:
        if value.kind == "bool":
            return _Value("number", value.expression.cast(pa.int8()))
        if value.kind != "number":
            raise self._wrong(f"numbers to calculate with, not {value.kind}")
        return value

    def _peek(self) -> str | None:
        if self._place >= len(self._tokens):
            return None
        kind, word = self._tokens[self._place]
        return None if kind == "text" else word

    def _next(self) -> tuple[str, str]:
        if self._place >= len(self._tokens):
            raise self._wrong("more at its end")
        self._place += 1
        return self._tokens[self._place - 1]

    def _took(self, word: str) -> bool:
        if self._peek() != word:
            return False
        self._place += 1
        return True

    def _expect(self, word: str) -> None:
        if not self._took(word):
            raise self._wrong(f"{word!r} before {self._peek()!r}" if self._peek() else f"{word!r} at its end")

    def _wrong(self, expected: str) -> UsageError:
        return UsageError(f"{self._text!r} can't be read: expected {expected}. {_HELP}")
