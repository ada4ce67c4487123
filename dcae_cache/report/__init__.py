"""The report on a cache: ``report.json`` with every figure, and ``index.html``, one page that needs nothing else.

    write_report(verify_cache("latents", VerifyOptions(pictures=True)), Path("report"))

Knows nothing of how a cache is checked.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import UsageError
from ..files import replace_atomically
from ..verify import VerifyReport
from .page import render
from .values import values_of

PAGE_NAME, VALUES_NAME = "index.html", "report.json"


def prepare_folder(folder: Path) -> None:
    """Make the report's folder. Raises UsageError where that can't be: known before hours of work, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--report {folder}: can't make that folder: {error.strerror or error}") from error


def write_report(result: VerifyReport, folder: Path) -> Path:
    """Write both files into the folder, each whole or not at all; the page's path is returned.

    Raises UsageError where the folder can't be made, CacheError where it can't be written to.
    """
    prepare_folder(folder)
    values = values_of(result)
    with replace_atomically(folder / VALUES_NAME) as file:
        file.write(json.dumps(values, ensure_ascii=False, indent=1).encode() + b"\n")
    with replace_atomically(folder / PAGE_NAME) as file:
        file.write(render(values, result.pictures).encode("utf-8", "backslashreplace"))
    return folder / PAGE_NAME
