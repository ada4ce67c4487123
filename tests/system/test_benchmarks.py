"""What ``scripts/bench all`` makes of what the benchmarks print, and that it runs them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE = """
from scripts.benchmarks.report import judge, not_measured, show_table

def main(args):
    "It takes --photos."
    print("photos", args)
    show_table(("a", "b"), [("x", 1), ("y", "")])
    judge("speed", 1.25, ">=", 1.2)
    judge("memory: peak, MiB", 600.0, "<", 500)
    not_measured("CUDA", "there is no GPU here")

FLAG = "--photos"
"""


def fake_tree(root: Path) -> None:
    """The dispatcher, ``all`` and ``report`` with benchmarks of its own."""
    folder = root / "scripts" / "benchmarks"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "all.py", "report.py"):
        (folder / name).write_text((ROOT / "scripts" / "benchmarks" / name).read_text())
    dispatcher = (ROOT / "scripts" / "benchmarks" / "__main__.py").read_text()
    start, end = dispatcher.index("BENCHMARKS = {"), dispatcher.index("}\n", dispatcher.index("BENCHMARKS = {")) + 2
    names = 'BENCHMARKS = {"all": "", "one": "a first", "two": "a second", "absent": "a third"}\n'
    (folder / "__main__.py").write_text(dispatcher[:start] + names + dispatcher[end:])
    (folder / "one.py").write_text(ONE)
    (folder / "two.py").write_text("def main(args):\n    raise SystemExit('it broke')\n")
    (folder / "absent.py").write_text("import no_such_library\n")


def bench(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.benchmarks", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})


def test_all_runs_what_the_dispatcher_lists(tmp_path: Path) -> None:
    fake_tree(tmp_path)
    done = bench(tmp_path, "all", "--photos", "pictures", "--json", "found.json")
    assert done.returncode == 1
    assert "1 failed: two" in done.stderr
    assert "| one | speed | 1.25 | >= 1.2 | met |" in done.stdout
    assert "| one | memory: peak, MiB | 600.0 | < 500 | **missed** |" in done.stdout
    assert "not measured, one: CUDA: there is no GPU here" in done.stdout
    assert "not measured, absent: absent: it can't be imported here (No module named 'no_such_library')" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"system", "cores", "torch", "device"} <= set(found["machine"])
    (one,) = found["benchmarks"]["one"]["runs"]
    assert one["options"] == ["--photos", "pictures"]
    assert one["tables"] == [{"header": ["a", "b"], "rows": [["x", "1"], ["y", ""]]}]
    assert [target["met"] for target in one["targets"]] == [True, False]
    assert found["benchmarks"]["two"]["runs"][0]["exit_code"] == 1


def test_only_some(tmp_path: Path) -> None:
    fake_tree(tmp_path)
    done = bench(tmp_path, "all", "--only", "one")
    assert done.returncode == 0, done.stderr
    assert "## two" not in done.stdout
    assert bench(tmp_path, "all", "--only", "nonsense").returncode == 2
    assert bench(tmp_path, "all", "--json", "nowhere/x.json").returncode == 2


def test_every_benchmark_has_its_line_and_its_file() -> None:
    code = "import json; from scripts.benchmarks.__main__ import BENCHMARKS; print(json.dumps(BENCHMARKS))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name, about in json.loads(done.stdout).items():
        assert about
        text = (ROOT / "scripts" / "benchmarks" / f"{name}.py").read_text()
        assert "\ndef main(" in text, f"{name} has no main"


@pytest.mark.parametrize("page", ["performance.md"])
def test_every_table_of_the_page_names_its_benchmark(page: str) -> None:
    """Its heading says by what it can be had again."""
    section = ""
    for line in (ROOT / "docs" / page).read_text().splitlines():
        section = line if line.startswith("## ") else section
        named = "scripts/bench " in section or "scripts/gpu" in section
        assert named or not line.startswith("|"), f"a table under {section!r}"


def test_every_script_finds_what_it_imports() -> None:
    """Nothing else runs most of them, and types aren't checked here. Only libraries of others may be missing."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("benchmarks", "gpu_checks")
        for path in sorted((ROOT / "scripts" / folder).glob("*.py"))
        if path.name != "__main__.py"
    ]
    assert len(names) > 20
    code = (
        "import sys\nfrom importlib import import_module\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        assert not error.name.startswith(('dcae_cache', 'scripts')), error\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
