"""Who may import whom. The table is the contract; the graph is read from the source text."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dcae_cache

PACKAGE = Path(dcae_cache.__file__).parent
CLI = PACKAGE.parent / "cli"

# module -> libraries of weight it may import, at any level of its code
LIBRARIES = {
    "huggingface_hub": {"models.checkpoint"},
    "accelerate": {"distributed"},
    "webdataset": {"sources.wds"},
    "datasets": {"sources.hf_open", "sources.hf_columns"},
    "torchmetrics": {"metrics", "set_metrics"},
    "diffusers": {"models.diffusers_autoencoder"},
    "jinja2": {"report.page"},
}
# These know nothing of tensors.
NO_TORCH = {
    "errors",
    "records",
    "config",
    "buckets",
    "images",
    "color",
    "resample",
    "files",
    "grid",
    "plan",
    "loading",
    "models.zoo",
    "models.spec",
    "models.diffusers_config",
    "json_values",
    "text",
    "report.plots",
    "sources",
    "sources.base",
    "sources.folder",
    "sources.annotations",
    "sources.fields",
    "sources.remote",
    "sources.wds",
    "sources.tables",
    "sources.hf",
    "sources.hf_open",
    "sources.hf_columns",
}
# module -> the modules of this package it may import; those not named here are free (but see the other tests)
ALLOWED = {
    "errors": set(),
    "records": set(),
    "buckets": {"errors", "records"},
    "images": {"buckets", "color", "errors", "records", "resample"},
    "resample": set(),
    "color": {"errors"},
    "config": {"buckets", "errors", "records"},
    "files": {"errors"},
    "moments": set(),
    "metrics": {"errors", "precision"},
    "precision": set(),
    "plan": {"errors", "files", "records"},
    "shards": {"errors", "files", "moments", "records"},
    "index": {"errors", "files", "moments", "plan", "records", "shards"},
    "keys": {"errors", "shards"},
    "latent_store": {"files"},
    "reuse": {"encoder", "errors", "loading", "reader", "records", "shards"},
    "reader": {"errors", "index", "shards"},
    "models.spec": set(),
    "models.dc_ae": {"models.spec"},
    "models.others": {"errors", "models.diffusers_config", "models.folder"},
    "models.diffusers_autoencoder": {"errors", "models.others", "precision"},
    "memory": set(),
    "set_metrics": {"errors"},
    "autoencoders": {
        "errors",
        "memory",
        "metrics",
        "models",
        "models.autoencoder",
        "models.checkpoint",
        "models.diffusers_autoencoder",
        "models.folder",
        "models.others",
        "models.zoo",
    },
    "grid": {"errors", "files"},
    "suspects": set(),
    "json_values": set(),
    "text": set(),
    "pictures": {"cache_model", "reader", "samples"},
    "report": {"files", "report.page", "report.values", "verify"},
    "report.values": {"json_values", "verify"},
    "report.plots": set(),
    "report.page": {"pictures", "report.plots", "text"},
    "decoding": {"autoencoders", "cache_model", "encoder", "errors", "files", "reader", "records"},
    "samples": {"config", "encoder", "errors", "integrity", "loading", "plan", "reader", "records", "sources"},
    "cache_model": {"autoencoders", "encoder", "errors", "models.autoencoder", "shards"},
    "round_trip": {"cache_model", "encoder", "integrity", "metrics", "reader", "samples", "suspects"},
    "opener": {"autoencoders", "errors", "standing"},
    "standing": {"autoencoders", "errors", "metrics", "set_metrics"},
    "encoder": {"config", "errors", "models.autoencoder", "records", "shards"},
    "loading": {"buckets", "errors", "images", "records", "sources"},
}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path.parent != CLI
}


def imported(path: Path, name: str) -> set[str]:
    """Absolute names of everything a module imports outside ``if TYPE_CHECKING``, own modules as "dcae_cache.x"."""
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


def own(names: set[str]) -> set[str]:
    return {name.removeprefix("dcae_cache.") for name in names} & set(MODULES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_libraries_stay_where_they_belong(name: str) -> None:
    roots = {item.split(".")[0] for item in imported(MODULES[name], name)}
    for library, homes in LIBRARIES.items():
        assert library not in roots or name in homes, f"{name} imports {library}"
    assert "typer" not in roots, f"{name} imports typer: the command line lives in cli/"


@pytest.mark.parametrize("name", sorted(NO_TORCH & set(MODULES)))
def test_modules_that_know_nothing_of_tensors(name: str) -> None:
    reached, pending = set(), {name}
    while pending:
        module = pending.pop()
        reached.add(module)
        names = imported(MODULES[module], module)
        assert not any(item.split(".")[0] == "torch" for item in names), f"{name} reaches torch through {module}"
        pending |= own(names) - reached


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_modules_import_only_what_the_design_allows(name: str) -> None:
    assert own(imported(MODULES[name], name)) <= ALLOWED[name]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_library_neither_prints_nor_exits(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "quit"), f"{name} calls {called}"
    assert "dcae_cache.cli" not in imported(MODULES[name], name)


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, dcae_cache.cli.main; print(sorted({'torch', 'datasets', 'PIL', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert "datasets" not in done.stdout


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
        "LatentDataset",
        "__version__",
        "encode_dataset",
    ]
    for name in dcae_cache.__all__:
        assert getattr(dcae_cache, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dcae_cache.nonsense
