"""From the library's names of arguments to what is typed: `batch_size` in a message becomes --batch-size.

The library knows no command line: its messages name an argument in backticks, as Python has it. The words come from
the commands' own parameters, so that none can be out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from typer.core import TyperCommand

_NAME = re.compile(r"`([a-z][a-z0-9_]*)`")
_words: dict[str, str] = {}  # of the command that runs


class Command(TyperCommand):
    """A command that, while it runs, decides how arguments are called in messages. Its help has its options under
    headings: ``headings`` maps the first option of each, by its name in Python, to the words above it."""

    headings: Mapping[str, str] = {}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options to ``formatter``, in the order of the function's arguments."""
        if not self.headings:
            super().format_options(ctx, formatter)
            return
        heading, groups = "Options", dict[str, list[tuple[str, str]]]()
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            heading = self.headings.get(str(param.name), heading)
            where = "Arguments" if _is_argument(param) else "Options" if param.name == "help" else heading
            if record is not None:
                groups.setdefault(where, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def invoke(self, ctx: Any) -> Any:
        """Run it. ``ctx`` is the typer.Context, which each version of typer calls by another class."""
        name_as(ctx)
        return super().invoke(ctx)


def name_as(context: typer.Context) -> None:
    """From now on call arguments as the command of ``context`` does; what it lacks, as the other commands do: verify
    may quote what encode has to be told."""
    _words.clear()
    siblings = getattr(context.parent.command, "commands", {}) if context.parent else {}
    for command in siblings.values():
        _words.update(_options(command.params))
    for param in filter(_is_argument, context.command.params):
        _words[str(param.name)] = str(param.metavar or param.name)
    _words.update(_options(context.command.params))


def with_flags(text: str) -> str:
    """The message with every `name` of an argument as it is typed; all else stays, backticks included."""
    return _NAME.sub(lambda match: _words.get(match[1], match[0]), text)


def with_flags_inside(value: Any) -> Any:
    """The same for every text in a JSON value that stands under the name of a message."""
    if isinstance(value, Mapping):
        return {name: _message(item) if name in _MESSAGES else with_flags_inside(item) for name, item in value.items()}
    return [with_flags_inside(item) for item in value] if isinstance(value, list | tuple) else value


# Where the library's messages stand in what --json prints: failures and cautions of models, notes, findings.
_MESSAGES = frozenset({"failure", "caution", "cautions", "note", "notes", "lpips_note", "warnings", "what", "mend"})


def _message(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_message(item) for item in value]
    return with_flags(value) if isinstance(value, str) else value


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _options(params: Iterable[Any]) -> dict[str, str]:
    """What the options are called in Python -> on the command line; also by the flag's own word, where Python has
    another for it (`image_format` and `format` are both --format)."""
    words: dict[str, str] = {}
    for param in params:
        flag = next((name for name in param.opts if name.startswith("--")), None)
        if flag is not None and not _is_argument(param):
            words |= {param.name: flag, flag.removeprefix("--").replace("-", "_"): flag}
    return words
