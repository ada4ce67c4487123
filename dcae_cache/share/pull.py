"""A cache from a data set repo on the hub to a folder: everything of one commit, then checked against its own hashes.

The index is written last, so a folder with an index is whole; a pull that was killed goes on where it broke off. Knows
nothing of how the hub is spoken to.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache.index import INDEX_NAME, load_index
from ..cache.integrity import Finding, check_integrity
from ..cache.locks import locked
from ..cache.parts import PARTS_FOLDER, shard_path, table_path
from ..cache.plan import PLAN_NAME
from ..errors import CacheError
from ..files import make_folder, replace_atomically
from .card import CARD_NAME, PICTURE_NAME
from .hub_repo import AbsentFileError, HubRepo
from .public_copy import SKIPPED_NAME

_FILES = (f"{PARTS_FOLDER}/part-*", PLAN_NAME, SKIPPED_NAME, CARD_NAME, PICTURE_NAME)
_MARK = ".pull.json"  # which repo and commit a folder was pulled from, and the index it got; none while unfinished
_CLIENT_FOLDER = ".cache"  # where the hub's client notes what it has fetched


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull brought: the folder, the commit, and what the cache holds."""

    out: str
    commit: str
    num_parts: int
    num_samples: int
    num_bytes: int


def pull_cache(
    repo_id: str,
    out: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pulled:
    """Copy the cache of ``repo_id`` (owner/name, a data set) into the folder ``out``, and check every hash.

    ``out`` is new or empty, holds a pull of this repo that broke off, which is gone on with, or one that is finished
    and unchanged since, which is brought up to date. ``revision``: a branch, tag or commit. ``progress`` hears (parts
    checked, parts in all).

    Raises UsageError for a name that is none, HubError where the hub refuses or can't be reached, CacheError where
    the repo holds no cache, ``out`` holds something else, or something arrived damaged.
    """
    out, repo = Path(out), HubRepo(repo_id, revision, token)
    commit = repo.commit()
    index, data = _index_of(repo, commit, token)
    _refuse_other_content(out, repo_id)
    make_folder(out)
    with locked(out):
        _mark(out, {"repo_id": repo_id, "commit": commit, "checksum": None})
        (out / INDEX_NAME).unlink(missing_ok=True)
        repo.fetch_all(commit, _FILES, out)
        _drop_unlisted(out, index)
        with replace_atomically(out / INDEX_NAME) as file:
            file.write(data)
        _refuse_damage(out, repo_id, check_integrity(out, progress))
        _mark(out, {"repo_id": repo_id, "commit": commit, "checksum": index["checksum"]})
        shutil.rmtree(out / _CLIENT_FOLDER, ignore_errors=True)
    totals = index["totals"]
    return Pulled(
        out=str(out),
        commit=commit,
        num_parts=totals["num_parts"],
        num_samples=totals["num_samples"],
        num_bytes=totals["num_bytes"],
    )


def _index_of(repo: HubRepo, commit: str, token: str | None) -> tuple[dict[str, Any], bytes]:
    """The index of a commit: what it says, and its bytes."""
    with tempfile.TemporaryDirectory(prefix="dcae-cache-pull-") as folder:
        try:
            data = HubRepo(repo.repo_id, commit, token).fetch(INDEX_NAME, Path(folder))
            return load_index(Path(folder)), data
        except AbsentFileError as error:
            raise CacheError(f"{repo.repo_id} holds no cache: it has no {INDEX_NAME}.") from error


def _refuse_other_content(out: Path, repo_id: str) -> None:
    """Only a new folder may be written to, or what an earlier pull of the same repo left as it is."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    found = _marked(out)
    if found is None:
        raise CacheError(f"{out} is not empty. Nothing was fetched; choose a new folder as `out`.")
    if found["repo_id"] != repo_id:
        raise CacheError(f"{out} was pulled from {found['repo_id']}. Nothing was fetched; choose another `out`.")
    if found["checksum"] is not None and load_index(out)["checksum"] != found["checksum"]:
        raise CacheError(
            f"{out} has changed since it was pulled from {repo_id}. Nothing was fetched; choose another `out`."
        )


def _marked(out: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((out / _MARK).read_bytes())
        return found if {"repo_id", "commit", "checksum"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _mark(out: Path, values: Mapping[str, Any]) -> None:
    with replace_atomically(out / _MARK) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")


def _drop_unlisted(out: Path, index: Mapping[str, Any]) -> None:
    """Remove parts that an earlier commit had and this one hasn't. They came from the hub, and are there still."""
    listed = {part["name"] for part in index["parts"]}
    for path in (out / PARTS_FOLDER).glob("part-*"):
        if path.stem not in listed:
            path.unlink()


def _refuse_damage(out: Path, repo_id: str, findings: Sequence[Finding]) -> None:
    """Remove what is damaged, so that the next pull fetches it, and say so."""
    if not findings:
        return
    for name in {finding.where for finding in findings}:
        if name.startswith("part-"):
            shard_path(out, name).unlink(missing_ok=True)
            table_path(out, name).unlink(missing_ok=True)
    (out / INDEX_NAME).unlink(missing_ok=True)
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    raise CacheError(
        f"{repo_id} did not arrive whole in {out}: {findings[0].where}: {findings[0].what}{more}. Run the same "
        "command again to fetch what is damaged; if that changes nothing, it is damaged on the hub."
    )
