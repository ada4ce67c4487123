"""What README.md and docs/ say is so: snippets run, links lead somewhere, named files, modules and options exist.

Every ```python snippet of a page is run, in the page's order and in one namespace, in a folder that holds ``images``
(three JPEGs) and ``latents`` (a cache of them by f32c32-tiny at 128 pixels), on whatever device there is.
An HTML comment on the line before a snippet, which a reader doesn't see, says what else it takes:

    <!-- snippet: given pixels -->                  names the reader has already: one of GIVEN below
    <!-- snippet: "cuda" -> "cpu" -->               text replaced before it is run: a GPU, a model of the hub
    <!-- snippet: given pixels; "cuda" -> "cpu" --> both
    <!-- snippet: skip, WHY -->                     not run, because it needs an extra; MOST_SKIPPED bounds them
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
import typer.main

import dcae_cache
from dcae_cache import EncodeConfig, RunOptions, SourceOptions, encode_dataset
from dcae_cache.cli.main import app
from dcae_cache.verify import VerifyOptions
from helpers.images import encoded_image

ROOT = Path(dcae_cache.__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = sorted([*(ROOT / "dcae_cache").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
MOST_SKIPPED = 1
GIVEN: dict[str, Callable[[], object]] = {
    "pixels": lambda: torch.rand(2, 3, 64, 96) * 2 - 1,
    "images": lambda: torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8),
}
_FENCE = re.compile(r"(?:^<!-- snippet: (?P<note>.+?) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
_REPLACED = re.compile(r"(\S+) -> (\S+)")


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    code: str
    given: tuple[str, ...] = ()
    skipped: str | None = None  # why


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def snippets(page: Path) -> Iterator[Snippet]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        if found["kind"] != "python":
            continue
        code, given, skipped = found["code"], [], None
        for clause in filter(None, (found["note"] or "").split("; ")):
            if clause.startswith("skip, "):
                skipped = clause.removeprefix("skip, ")
            elif clause.startswith("given "):
                given += clause.removeprefix("given ").split(", ")
            else:
                match = _REPLACED.fullmatch(clause)
                assert match is not None, f"{name_of(page)}: {clause!r} is no note to a snippet"
                assert match[1] in code, f"{name_of(page)}: the snippet doesn't hold {match[1]}"
                code = code.replace(match[1], match[2])
        yield Snippet(name_of(page), text[: found.start("code")].count("\n"), code, tuple(given), skipped)


SNIPPETS = [snippet for page in PAGES for snippet in snippets(page)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images`` and ``latents``."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "images" / "cats").mkdir(parents=True)
    for number, size in enumerate([(300, 200), (256, 256), (200, 300)]):
        (folder / "images" / "cats" / f"img{number}.jpg").write_bytes(encoded_image(*size, seed=number))
    config = EncodeConfig(model="f32c32-tiny", resolution=128)
    encode_dataset(folder / "images", folder / "latents", config, RunOptions(device="cpu"))
    return folder


@pytest.mark.parametrize("page", sorted({snippet.page for snippet in SNIPPETS}))
def test_snippets_run(page: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(prepared, tmp_path / "here")  # times of files are kept: nothing counts as changed
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for snippet in SNIPPETS:
        if snippet.page == page and snippet.skipped is None:
            namespace |= {name: GIVEN[name]() for name in snippet.given}
            exec(compile("\n" * snippet.line + snippet.code, ROOT / page, "exec"), namespace)


def test_few_snippets_are_skipped() -> None:
    assert len(SNIPPETS) > 8
    assert sum(snippet.skipped is not None for snippet in SNIPPETS) <= MOST_SKIPPED


# --- links and names ------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{name_of(page)} links to {target}, which isn't there"
        assert not anchor or anchor in headings(linked), f"{name_of(page)} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tops = "dcae_cache|cli|tests|scripts|docs|examples|helpers"
    for path in re.findall(rf"(?<![\w./<-])((?:{tops})/[\w./-]*\w/?)(?![\w<*{{])", text):
        assert (ROOT / path).exists(), f"{name_of(page)} names {path}, which isn't there"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_modules_exist(page: Path) -> None:
    for dotted in set(re.findall(r"(?<![\w/])dcae_cache\.[a-z_][\w.]*\w", page.read_text(encoding="utf-8"))):
        if page.name == "format.md" and "_cache." in dotted and dotted.count(".") == 1:
            continue  # keys of metadata
        assert _resolves(dotted), f"{name_of(page)} names {dotted}, which isn't there"


def _resolves(dotted: str) -> bool:
    module, names = dotted, list[str]()
    while True:
        try:
            value: object = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
    for name in names:
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_the_options_they_show(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
        for line in found["code"].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if re.match(r"(srun .*)?dcae-cache ", line) else []
            words = words[words.index("dcae-cache") + 1 :] if words else []
            if not words or words[0].startswith("-"):
                continue
            known = {option for parameter in commands[words[0]].params for option in parameter.opts} | {"--help"}
            shown = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert shown <= known, f"{name_of(page)}: {line}"


def test_files_named_in_the_source_exist() -> None:
    """Docstrings and comments point to other files by name; a renamed file must take its mentions with it."""
    known = {path.name for top in ("dcae_cache", "cli", "tests", "scripts") for path in (ROOT / top).rglob("*.py")}
    known.add("image_datasets.py")  # of guided-diffusion
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        gone = set(re.findall(r"\b\w+\.py\b", text)) - known
        assert not gone, f"{name_of(path)} names {sorted(gone)}"
        for page in re.findall(r"\bdocs/[\w.-]+\.md\b", text):
            assert (ROOT / page).exists(), f"{name_of(path)} names {page}"


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_every_package_has_its_place(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for package in [path.parent for path in (ROOT / "dcae_cache").glob("*/__init__.py")] + [ROOT / "cli"]:
        assert re.search(rf"`(dcae_cache/)?{package.name}/`", text), f"{page} leaves out {package.name}/"


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.name in ("README.md", "CHANGELOG.md") or f"({name_of(page)})" in text, name_of(page)


def test_every_script_is_explained() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for script in (ROOT / "scripts").iterdir():
        assert script.is_dir() or re.search(rf"`scripts/{script.name}[ `]", text), script.name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


# --- public names ---------------------------------------------------------------------------------------------------


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in dcae_cache.__all__:
        assert f"`{name}" in page, f"docs/python.md doesn't explain {name}"


@pytest.mark.parametrize("kind", [EncodeConfig, RunOptions, SourceOptions, VerifyOptions])
def test_every_field_is_explained(kind: type) -> None:
    """Where ``help`` shows it, and in the reference."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for field in fields(kind):
        assert f"``{field.name}``" in (kind.__doc__ or ""), f"the docstring of {kind.__name__} leaves out {field.name}"
        assert f"`{field.name}`" in page, f"docs/python.md leaves out {kind.__name__}.{field.name}"


@pytest.mark.parametrize("name", sorted(set(dcae_cache.__all__) - {"__version__"}))
def test_public_names_explain_themselves(name: str) -> None:
    """Each, and each public method of a class; a function says what it raises."""
    value = getattr(dcae_cache, name)
    assert len(inspect.getdoc(value) or "") > 60
    if inspect.isfunction(value):
        assert "Raises" in (value.__doc__ or "")
    if not inspect.isclass(value):
        return
    source = ast.parse(inspect.getsource(inspect.getmodule(value)))  # type: ignore[arg-type]
    body = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == name).body
    for method in body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            assert ast.get_docstring(method), f"{name}.{method.name} has no docstring"
