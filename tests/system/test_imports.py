"""Who may import whom. The table is the contract; the graph is read from the source text."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dcae_cache

PACKAGE = Path(dcae_cache.__file__).parent
CLI = Path(dcae_cache.__file__).parents[1] / "cli"

# The house: each package or top-level module, and the ones it may import. Every row names only rows above it, so
# arrows go down and there is no circle. What is not named here must not exist.
MAY_IMPORT: dict[str, set[str]] = {
    "urls": set(),
    "errors": {"urls"},
    "interruption": set(),
    "ledger": set(),
    "records": set(),
    "text": set(),
    "asking": set(),
    "trace": set(),
    "version": set(),
    "files": {"errors"},
    "remote": {"errors", "text", "urls"},
    "object_store": {"errors", "files", "remote", "urls"},
    "compute": {"errors", "records"},
    "images": {"errors", "records"},
    "sources": {"asking", "images", "remote", "records", "ledger", "errors", "text", "urls"},
    "models": {"compute", "records", "errors", "text"},
    "metrics": {"compute", "errors"},
    "config": {"images", "records", "errors"},
    "cache": {
        *("asking", "config", "compute", "object_store", "files", "records", "ledger", "errors", "text", "urls"),
        "version",
    },
    "loading": {"sources", "images", "records", "errors", "text", "trace", "urls"},
    "reader": {"asking", "cache", "compute", "files", "remote", "urls", "errors"},
    "compare": {"models", "metrics", "sources", "images", "config", "compute", "files", "records", "errors", "text"},
    "encode": {
        *(
            "cache",
            "loading",
            "sources",
            "models",
            "images",
            "config",
            "compute",
            "object_store",
            "urls",
            "files",
            "interruption",
            "records",
            "ledger",
            "errors",
            "text",
            "trace",
        ),
    },
    "decode": {"cache", "reader", "models", "compute", "files", "records", "errors"},
    "export": {"reader", "cache", "images", "compute", "files", "text", "records", "errors"},
    "importing": {"models", "cache", "config", "images", "compute", "files", "records", "errors"},
    "share": {"decode", "reader", "cache", "models", "compute", "files", "urls", "records", "errors", "text"},
    "curate": {"reader", "cache", "files", "records", "errors"},
    "verify": {
        *("decode", "reader", "compare", "cache", "loading", "sources", "models", "metrics"),
        *("compute", "files", "text", "urls", "records", "errors"),
    },
    "cli": {
        *(
            "verify",
            "share",
            "curate",
            "export",
            "importing",
            "decode",
            "encode",
            "compare",
            "reader",
            "loading",
            "cache",
            "config",
            "metrics",
            "models",
        ),
        *("sources", "images", "remote", "compute", "files", "version", "text", "urls", "records", "ledger", "errors"),
        "interruption",
    },
    "__main__": {"cli"},
}
# library of weight -> the modules that may import it, at any level of their code
HOMES = {
    "huggingface_hub": {"models.hub", "share.hub_repo"},
    "accelerate": {"encode.distributed"},
    "webdataset": {"sources.tar_groups", "sources.tar_names"},
    "aiohttp": {"sources.downloads"},
    "datasets": {"sources.hf_open", "sources.hf_columns"},
    "torchmetrics": {"metrics.set_scores"},
    "diffusers": {"models.diffusers_autoencoder"},
    "jinja2": {"verify.report.page"},
    "triton": {"models.kernels"},
    "streaming": {"export.mds"},
    "pillow_heif": {"images.heif"},
    "pillow_jxl": {"images.jxl"},
}
# These reach torch on no way: packages as a whole, or single modules.
NO_TORCH = {
    *(
        "urls",
        "errors",
        "records",
        "config",
        "text",
        "trace",
        "version",
        "files",
        "remote",
        "images",
        "sources",
        "loading",
    ),
    *(
        "cache.plan",
        "cache.recipe",
        "cache.locks",
        "cache.known",
        "cache.shape",
        "cache.tables",
        "models.zoo",
        "models.spec",
        "models.options",
    ),
    *("models.diffusers_config", "compare.grid", "verify.report.plots"),
}
EXITS = {"encode.worker_process"}  # beside cli/, the one module that is a program


def _modules() -> dict[str, Path]:
    """Name within the package -> file, of every module of the library and of cli/."""
    files = {path: path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    files |= {path: Path("cli") / path.relative_to(CLI) for path in CLI.rglob("*.py")}
    named = {
        ".".join(place.with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
        for path, place in files.items()
    }
    return {name: path for name, path in named.items() if name}


MODULES = _modules()
# `python -m dcae_cache` can only be dcae_cache/__main__.py: it is the command line's, though it lies in the library.
LIBRARY = sorted(name for name in MODULES if name.split(".")[0] not in ("cli", "__main__"))


def imported(name: str) -> set[str]:
    """Absolute names of everything a module imports outside ``if TYPE_CHECKING``, own modules as "dcae_cache.x"."""
    path = MODULES[name]
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    base = ["dcae_cache", *name.split(".")]
    if path.name != "__init__.py":
        base.pop()
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = base[: len(base) - node.level + 1] if node.level else []
            stem = ".".join([*origin, *([node.module] if node.module else [])])
            found |= {f"{stem}.{alias.name}" for alias in node.names} | {stem}
    return found


def own(name: str) -> set[str]:
    """The modules of this package that a module imports; of a name in a module, the module."""
    return {found.removeprefix("dcae_cache.") for found in imported(name)} & set(MODULES)


def test_every_module_has_its_row() -> None:
    assert {name.split(".")[0] for name in MODULES} == set(MAY_IMPORT)


def test_arrows_go_down() -> None:
    rows = list(MAY_IMPORT)
    for row, below in MAY_IMPORT.items():
        assert below <= set(rows[: rows.index(row)]), f"{row} names a row that doesn't stand above it"


def test_the_picture_of_the_layers_is_that_of_the_table() -> None:
    """docs/architecture.md draws each row one layer above the highest it may import."""
    layers: dict[str, int] = {}
    for row, below in MAY_IMPORT.items():
        layers[row] = 1 + max((layers[name] for name in below), default=0)
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^(\d+)  ([a-z_ ]+)$", page, re.MULTILINE)
    assert sorted((name, int(layer)) for layer, names in drawn for name in names.split()) == sorted(layers.items())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_import_only_what_their_row_allows(name: str) -> None:
    package = name.split(".")[0]
    reached = {found.split(".")[0] for found in own(name)} - {package}
    assert reached <= MAY_IMPORT[package], f"{name} imports {sorted(reached - MAY_IMPORT[package])}"


def test_no_circles_of_files() -> None:
    done: set[str] = set()
    for start in MODULES:
        way: list[str] = []

        def follow(name: str, way: list[str] = way) -> None:
            assert name not in way, f"a circle: {' -> '.join([*way[way.index(name) :], name])}"
            if name in done:
                return
            way.append(name)
            for other in own(name) - {name}:
                follow(other)
            way.pop()
            done.add(name)

        follow(start)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_does_not_name_the_command_line(name: str) -> None:
    """Not even in a string: whoever embeds the library may leave cli/ out."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert "dcae_cache.cli" not in node.value, f"{name} names dcae_cache.cli"
    assert not any(found.split(".")[0] == "cli" for found in own(name))
    assert "typer" not in {item.split(".")[0] for item in imported(name)}, f"{name} imports typer: that is cli/'s"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_libraries_stay_where_they_belong(name: str) -> None:
    roots = {item.split(".")[0] for item in imported(name)}
    for library, homes in HOMES.items():
        assert library not in roots or name in homes, f"{name} imports {library}"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if {n, n.split(".")[0]} & NO_TORCH))
def test_modules_that_know_nothing_of_tensors(name: str) -> None:
    reached, pending = set(), {name}
    while pending:
        module = pending.pop()
        reached.add(module)
        names = imported(module)
        assert not any(item.split(".")[0] == "torch" for item in names), f"{name} reaches torch through {module}"
        pending |= own(module) - reached


@pytest.mark.parametrize("name", LIBRARY)
def test_library_neither_prints_nor_exits(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "exit", "quit"), f"{name} calls {called}"
            assert called != "sys.exit" or name in EXITS, f"{name} calls {called}"


@pytest.mark.parametrize("name", sorted(n for n, path in MODULES.items() if path.name == "__init__.py"))
def test_packages_say_what_they_are_and_load_nothing(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    assert (ast.get_docstring(tree) or "").strip()
    if name not in ("sources", "verify.report"):
        assert not own(name), f"importing {name} loads {sorted(own(name))}"


def test_the_command_line_starts_without_heavy_libraries() -> None:
    """Whoever asks for help waits for none of them."""
    heavy = {"torch", "numpy", "pyarrow", "PIL", "aiohttp", "fsspec", "datasets", "webdataset", "tqdm"}
    code = f"import sys, cli.main; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]\n"


def test_what_a_cache_says_of_itself_is_read_without_torch() -> None:
    modules = "dcae_cache.cache.brought, dcae_cache.cache.index, dcae_cache.cache.ledger_file"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_reader_needs_no_image_or_model_libraries() -> None:
    code = (
        "import sys, dcae_cache; dcae_cache.LatentDataset; "
        "bad = {'PIL', 'datasets', 'webdataset', 'accelerate', 'huggingface_hub', 'dcae_cache.models'}; "
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_those_promised() -> None:
    assert sorted(dcae_cache.__all__) == [
        "BucketBatchSampler",
        "DCAE",
        "DCAECacheError",
        "EncodeConfig",
        "LatentDataset",
        "LatentLoader",
        "MixedDataset",
        "RunOptions",
        "Selection",
        "SourceOptions",
        "__version__",
        "encode_dataset",
        "verify_cache",
    ]
    for name in dcae_cache.__all__:
        assert getattr(dcae_cache, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dcae_cache.nonsense
