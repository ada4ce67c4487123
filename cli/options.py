"""Options that mean the same in several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcae_cache.errors import UsageError
from dcae_cache.text import whole_number

Cache = Annotated[str, typer.Argument(metavar="CACHE", help="A folder made by `dcae-cache encode`, or its URL.")]
CacheFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="A folder made by `dcae-cache encode`.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to run.")]
MovedModel = Annotated[str | None, typer.Option(help="Where the cache's model is now, if it moved.")]
CacheDir = Annotated[str | None, typer.Option(help="The hub's cache folder.")]
Token = Annotated[str | None, typer.Option(help="Hub token; the saved one unless given.", envvar="HF_TOKEN")]
Offline = Annotated[bool, typer.Option("--offline", help="Only models that are in the hub's cache.")]
LpipsWeights = Annotated[Path | None, typer.Option(help="torchvision's AlexNet weights, for LPIPS without a network.")]
MaxBytes = Annotated[
    int, typer.Option(min=1, help="Skip, unread, whatever has more encoded bytes: tar bombs, endless URLs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def number_or(word: str, text: str, expected: str) -> int | None:
    """The number above 0 that an option's text spells, None for the ``word`` it may be instead; UsageError says what
    is ``expected``."""
    number = whole_number(text)
    if text != word and not number:
        raise UsageError(f"{expected}, not {text!r}.")
    return number
