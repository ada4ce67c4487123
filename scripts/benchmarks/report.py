"""What a benchmark prints besides its own words: tables, and verdicts on its targets, in a form that ``scripts/bench
all`` can read back from the output. Knows nothing of what is measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_VERDICT = re.compile(
    r"^target: (?P<name>.+): (?P<found>[^ ]+) (?P<relation>>=|<=|<|>) (?P<wanted>[^ ]+): (?P<how>.+)$"
)
_RELATIONS = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}
_NOT_MEASURED = "not measured: "


def show_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in Markdown."""
    print()
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    print()


def judge(name: str, found: float, relation: str, wanted: float) -> bool:
    """Print whether a target was met."""
    met = _RELATIONS[relation](float(found), float(wanted))
    print(f"target: {name}: {found:.4g} {relation} {wanted:g}: {'met' if met else 'missed'}", flush=True)
    return met


def not_measured(name: str, why: str) -> None:
    """Print that something could not be measured here."""
    print(f"{_NOT_MEASURED}{name}: {why}", flush=True)


def read_back(output: str) -> dict[str, Any]:
    """The tables (each its header and rows), the verdicts, and what was not measured, in what a benchmark printed."""
    tables: list[dict[str, Any]] = []
    above = ""
    for line in output.splitlines():
        if line.startswith("|") and line.endswith("|"):
            cells = [cell.strip() for cell in line[1:-1].split("|")]
            if not above.startswith("|"):
                tables.append({"header": cells, "rows": []})
            elif set(line) - set("|-: "):
                tables[-1]["rows"].append(cells)
        above = line
    verdicts = [found.groupdict() for line in output.splitlines() if (found := _VERDICT.match(line))]
    targets = [
        {
            "name": verdict["name"],
            "found": float(verdict["found"]),
            "relation": verdict["relation"],
            "wanted": float(verdict["wanted"]),
            "met": verdict["how"] == "met",
        }
        for verdict in verdicts
    ]
    missing = [line.removeprefix(_NOT_MEASURED) for line in output.splitlines() if line.startswith(_NOT_MEASURED)]
    return {"tables": tables, "targets": targets, "not_measured": missing}
