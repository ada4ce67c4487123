"""Messages of the library name arguments; what a user reads names what is typed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command

import dcae_cache
from dcae_cache.cli import flags
from dcae_cache.cli.main import app
from helpers.command import run
from helpers.images import make_folder

CLI = Path(dcae_cache.__file__).parents[1] / "cli"
TINY = ("--model", "f32c32-tiny", "--device", "cpu")


@pytest.fixture
def say_as() -> Iterator[object]:
    """Have messages read as if the named command ran."""
    group = get_command(app)
    root = typer.Context(group)  # type: ignore[arg-type]  # typer's own classes differ between its versions

    def choose(name: str) -> None:
        flags.name_as(typer.Context(group.commands[name], parent=root))  # type: ignore[attr-defined]

    yield choose
    flags._words.clear()


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("encode", "`batch_size` must be at least 1", "--batch-size must be at least 1"),
        ("encode", "`source` is empty; `limit` 3, `out` x", "SOURCE is empty; --limit 3, --out x"),
        ("verify", "say where they are now: `source`", "say where they are now: --source"),
        ("verify", "`cache` is odd; `fid_weights` f", "CACHE is odd; --fid-weights f"),
        ("decode", "`format` is one of, `image_format`; `keys`", "--format is one of, --format; KEY..."),
        ("verify", "Choose one with `image_column`", "Choose one with --image-column"),  # an option of encode alone
        ("encode", "run `dcae-cache models`, or `images.float() / 127.5 - 1`, or `nonsense`", None),
    ],
)
def test_names_become_what_is_typed(say_as: object, command: str, message: str, shown: str | None) -> None:
    assert callable(say_as)
    say_as(command)
    assert flags.with_flags(message) == (shown or message)


def test_in_json_only_messages_are_changed(say_as: object) -> None:
    assert callable(say_as)
    say_as("verify")
    values = {
        "samples": {"`model`": {"key": "`model`"}},
        "findings": [{"where": "`model`", "what": "`model` x", "mend": "give `source`"}],
        "notes": ["`device` a"],
        "failure": None,
    }
    assert flags.with_flags_inside(values) == {
        "samples": {"`model`": {"key": "`model`"}},
        "findings": [{"where": "`model`", "what": "--model x", "mend": "give --source"}],
        "notes": ["--device a"],
        "failure": None,
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--part-range", "3/2"), 2, "--part-range counts from 0"),
        (("--part-range", "0/2", "--repair"), 2, "--repair needs the cache to itself, so it can't be combined with"),
        (("--prune", "--limit", "2"), 2, "--prune needs the whole listing, so it can't be combined with --limit"),
        (("--resolution", "100"), 2, "does not divide"),
    ],
)
def test_users_read_flags(tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    source = make_folder(tmp_path / "photos", 1)
    done = run("encode", source, "--out", tmp_path / "out", *TINY, *arguments, expect=code)
    assert message in done.stderr
    assert "`" not in done.stderr


def test_other_commands_too(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 1)
    cache = tmp_path / "out"
    run("encode", source, "--out", cache, *TINY, "--resolution", "64")
    source.rename(tmp_path / "moved")
    assert "say where they are now: --source\n" in run("verify", cache, expect=1).stderr
    assert "--fid-weights is of use with --fid only" in run("verify", cache, "--fid-weights", "x", expect=2).stderr
    run("decode", cache, "*", "--out", tmp_path / "images", "--device", "cpu")
    again = run("decode", cache, "*", "--out", tmp_path / "images", "--device", "cpu", expect=2)
    assert "choose another --out, or --overwrite" in again.stderr
    image = next((tmp_path / "moved").rglob("*.*"))
    assert "--out grid.bmp: the grid is" in run("compare", image, "--out", "grid.bmp", expect=2).stderr


# Advice to run a whole command keeps its flags: "encode --prune", "dcae-cache verify CACHE --source SOURCE".
ADVICE = re.compile(r"(encode|verify|info|command with|encode again, with)\b[^.;:]*?--[a-z]")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
EXEMPT = {
    "encode/distributed.py",  # accelerate's launcher has options of its own
    "sources/tars.py",  # tar has flags of its own
    "urls.py",  # curl has flags of its own
    "share/card.py",  # whole commands for the readers of a card
    *("compute/devices.py", "models/autoencoder.py", "models/latent_encoder.py"),  # until they name arguments, too
}


def test_the_library_names_no_flags() -> None:
    root = Path(dcae_cache.__file__).parent
    wrong = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name in EXEMPT:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise | ast.Return | ast.Yield | ast.Assign | ast.Call):
                texts = {text for text in _texts(node) if FLAG.search(ADVICE.sub("", text))}
                wrong += [f"{name}:{node.lineno}: {text}" for text in texts]
    assert not wrong, "\n".join(wrong)


def _texts(node: ast.AST) -> Iterator[str]:
    """The texts in an expression or statement, an f-string with the names of its values left out."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.JoinedStr):
            yield "".join(str(part.value) for part in inner.values if isinstance(part, ast.Constant))
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def test_only_output_writes_to_the_terminal() -> None:
    """What is shown goes through output.py, which escapes what steers a terminal and leaves out passwords."""
    for path in sorted(CLI.glob("*.py")):
        if path.name == "output.py":
            continue
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        streams = (".stdout.write", ".stderr.write", ".stdout.buffer.write")
        writes = {name for name in calls if name == "print" or name.endswith((".echo", ".secho", *streams))}
        assert not writes, path.name
