"""The report on a cache: ``report.json`` with every figure, and ``index.html``, one page that needs nothing else.

    write_report(verify_cache("latents", VerifyOptions(pictures=True)), Path("report"))

Knows nothing of how a cache is checked.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...files import make_folder, replace_atomically
from ..checks import VerifyReport
from .page import render
from .values import values_of

PAGE_NAME, VALUES_NAME = "index.html", "report.json"


def write_report(result: VerifyReport, folder: Path) -> Path:
    """Write both files into the folder, each whole or not at all; the page's path is returned.

    Raises CacheError where the folder can't be made or written to.
    """
    make_folder(folder)
    values = values_of(result)
    with replace_atomically(folder / VALUES_NAME) as file:
        file.write(json.dumps(values, ensure_ascii=False, indent=1).encode() + b"\n")
    with replace_atomically(folder / PAGE_NAME) as file:
        file.write(render(values, result.pictures).encode("utf-8", "backslashreplace"))
    return folder / PAGE_NAME
