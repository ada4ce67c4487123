"""How results are shown: JSON or text on stdout, progress and messages on stderr.

Whatever is shown goes through ``shown``: keys, captions and messages of others can't steer the terminal, and no
password of a URL is on it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from dcae_cache.text import printable, printable_json
from dcae_cache.urls import without_secrets

from .exit_codes import EXIT_INTERRUPTED
from .flags import with_flags, with_flags_inside

if TYPE_CHECKING:
    from tqdm import tqdm


def shown(text: str) -> str:
    """One line as it may be shown, arguments called as they are typed."""
    return printable(without_secrets(with_flags(text)))


def say(text: str) -> None:
    """A message for a person, on stderr: one line, whatever is in it; arguments are called as they are typed."""
    typer.echo(shown(text), err=True)


def show(text: str = "") -> None:
    """A line of a result, on stdout."""
    typer.echo(shown(text))


def show_json(values: Mapping[str, Any]) -> None:
    """The one JSON object that ``--json`` promises, on stdout."""
    text = json.dumps(with_flags_inside(values), ensure_ascii=False, indent=1)
    typer.echo(printable_json(without_secrets(text)))


def show_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns lined up on stdout: text to the left, numbers to the right."""
    cells = [[shown(str(value)) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    numeric = [all(isinstance(row[i], int | float) for row in rows) and bool(rows) for i in range(len(head))]
    for line in [list(head), *cells]:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        show("  ".join(padded).rstrip())


class ProgressBar:
    """A tqdm bar on stderr: how many, rate, time left and how many were skipped. Made on the first report."""

    def __init__(self, unit: str, what: str | None = None) -> None:
        self._unit = unit
        self._what = what
        self._bar: tqdm[Any] | None = None

    def update(self, done: int, total: int | None, skipped: int = 0) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._what,
                total=total,
                initial=done,
                unit=f" {self._unit}",
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.5,
            )
        self._bar.total = total
        if skipped:
            self._bar.set_postfix_str(f"skipped {skipped}", refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def resumable(unit: str, what: str, kept: str = "parts") -> Iterator[Callable[[int, int | None], None]]:
    """Work that the same command takes up again after Ctrl-C; ``kept`` names what stays. Gives what progress is told
    to."""
    bar = ProgressBar(unit, what)
    try:
        yield bar.update
    except KeyboardInterrupt:
        bar.close()
        say(f"Interrupted. Finished {kept} are kept: run the same command again to go on.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        bar.close()
