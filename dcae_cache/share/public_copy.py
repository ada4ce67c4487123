"""A cache's files as others may see them: without the folders, passwords and signatures of whoever made it.

Latents are never touched. A table, the plan and the list of skipped samples are copied only where something in them
has to go, and the index is derived anew, so that the copy is a cache in itself, true to its own hashes. Knows nothing
of where it is sent.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..cache.index import INDEX_NAME, save_index
from ..cache.pages import Pages
from ..cache.parts import PARTS_FOLDER, table_path
from ..cache.plan import PLAN_NAME, Plan, load_plan
from ..errors import CacheError, one_line
from ..files import make_folder, replace_atomically, sha256_of_file
from ..records import Origin, part_number
from ..urls import without_secrets

SKIPPED_NAME = "skipped.jsonl"
_TEXTS = ("source", "detail")  # the columns that say where an image was
_FILE_URL = re.compile(r"(?i)\bfile://[^\s'\"<>]*/")
_PATTERN = re.compile(r"[*?{\[]")
_FOLDERS = re.compile(r"(?<![\w.~:/-])~?/(?:[^\s/'\",;]+/)+(?=[^\s/])")


@dataclass(frozen=True)
class Names:
    """Takes the folders of one machine out of texts. ``home``: the folder that holds the source, "" if none does."""

    home: str

    @staticmethod
    def of(uri: str) -> Names:
        """For a cache whose source was named ``uri``, which may be a pattern."""
        literal = _PATTERN.split(uri, maxsplit=1)[0]
        return Names(os.path.dirname(literal) if uri.startswith("/") else "")

    def public(self, text: str) -> str:
        """The text with absolute paths cut down to what lies beside the source, or to a file's own name; of URLs,
        passwords and signatures go, and of shell commands everything."""
        if text.startswith("pipe:"):
            return "pipe:..."
        if self.home not in ("", "/"):
            text = text.replace(f"{self.home}/", "")
        text = _FILE_URL.sub("", without_secrets(text))
        if text.startswith(("/", "~/")):
            return text.rpartition("/")[2]
        return _FOLDERS.sub("", text)

    def of_files(self, places: Sequence[str]) -> dict[str, str]:
        """The public name of each file, and no two the same: of those that would be, with as many of their folders as
        tell them apart."""
        found = {place: self.public(os.path.normpath(place) if place.startswith("/") else place) for place in places}
        counts = Counter(found.values())
        alike = [place for place, name in found.items() if counts[name] > 1 and place.startswith("/")]
        taken = {name for name, count in counts.items() if count == 1}
        parts = {place: PurePosixPath(os.path.normpath(place)).parts[1:] for place in alike}
        for length in range(2, max(map(len, parts.values()), default=1) + 1):
            longer = {place: "/".join(parts[place][-length:]) for place in alike}
            if len({*longer.values()} - taken) == len(alike):
                return found | longer
        return found


@dataclass(frozen=True)
class PublicCopy:
    """The public form of a cache's files, made in ``folder`` where it differs from the file in ``cache``; without
    ``anonymous`` none differs.

    Raises CacheError for a table or plan that can't be read, or isn't what the index says.
    """

    cache: Path
    index: Mapping[str, Any]
    folder: Path
    anonymous: bool = True

    @cached_property
    def _names(self) -> Names:
        return Names.of(self.index["source"]["uri"])

    @cached_property
    def _plan(self) -> Plan:
        plan = load_plan(self.cache)
        if plan is None:
            raise CacheError(f"{self.cache} has no {PLAN_NAME}. Restore it from a copy, or encode into a new folder.")
        return plan

    @cached_property
    def _files(self) -> dict[str, str]:
        """The public names of the files that are entries by their whole path, as input tars are."""
        distinct = self._plan.table["location"].combine_chunks().dictionary_encode().dictionary.to_pylist()
        return self._names.of_files([place for place in distinct if place.startswith("/")])

    def _public(self, files: Mapping[str, str], text: str) -> str:
        """A text that may name something in one of these files."""
        for place, name in files.items():
            if text == place or text.startswith(f"{place}/"):
                return name + text.removeprefix(place)
        return self._names.public(text)

    @cached_property
    def _public_plan(self) -> Plan:
        plan = self._plan
        table = plan.table
        for column in ("key", "location"):
            table = _with_texts(table, column, lambda text: self._files.get(text) or self._names.public(text))
        origin = Origin(self._names.public(plan.origin.uri), plan.origin.options)
        return Plan(Pages.of_table(table), _public_recipe(plan.recipe, self._names), origin)

    def table(self, entry: Mapping[str, Any]) -> Path:
        """A part's table. ``entry``: that of the index."""
        name = entry["name"]
        path = table_path(self.cache, name)
        try:
            if sha256_of_file(path) != entry["table_sha256"]:
                raise CacheError(f"{path} is not what index.json says. Run: dcae-cache verify {self.cache}")
            if not self.anonymous:
                return path
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise CacheError(unreadable(path, one_line(error), self.cache)) from error
        changed = table
        entries = self._plan.part(part_number(name)).entries
        files = {entry.location: new for entry in entries if (new := self._files.get(entry.location))}
        for column in _TEXTS:
            changed = _with_texts(changed, column, partial(self._public, files))
        number = part_number(name)
        old, new = (plan.digest(number) for plan in (self._plan, self._public_plan))
        metadata = dict(table.schema.metadata)
        if old != new and metadata[b"dcae_cache.entries_sha256"] == old.encode():
            metadata[b"dcae_cache.entries_sha256"] = new.encode()
        if changed is table and metadata == table.schema.metadata:
            return path
        make_folder(self.folder / PARTS_FOLDER)
        copy = table_path(self.folder, name)
        with replace_atomically(copy) as file:
            pq.write_table(changed.replace_schema_metadata(metadata), file, compression="zstd")
        return copy

    def plan(self) -> Path:
        """The plan."""
        if not self.anonymous:
            return self.cache / PLAN_NAME
        old, new = self._plan, self._public_plan
        if new.table is old.table and (new.origin, new.recipe) == (old.origin, old.recipe):
            return self.cache / PLAN_NAME
        new.save(self.folder)
        return self.folder / PLAN_NAME

    def skipped(self) -> Path:
        """The list of skipped samples."""
        if not self.anonymous:
            return self.cache / SKIPPED_NAME
        copy = self.folder / SKIPPED_NAME
        with replace_atomically(copy) as file, (self.cache / SKIPPED_NAME).open(encoding="utf-8") as lines:
            for line in lines:
                values = json.loads(line)
                values |= {name: self._names.public(values[name]) for name in _TEXTS if values.get(name)}
                file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
        return copy

    def index_over(self, table_sha256: Mapping[str, str]) -> tuple[dict[str, Any], Path]:
        """The index over these tables (part -> hash) and the public plan: what it says, and its file."""
        if not self.anonymous:
            return dict(self.index), self.cache / INDEX_NAME
        index = {
            **self.index,
            "source": self.index["source"] | {"uri": self._names.public(self.index["source"]["uri"])},
            "recipe": _public_recipe(self.index["recipe"], self._names),
            "plan_sha256": sha256_of_file(self.plan()),
            "parts": [part | {"table_sha256": table_sha256[part["name"]]} for part in self.index["parts"]],
        }
        save_index(self.folder, index)
        return index, self.folder / INDEX_NAME


def unreadable(path: Path, why: str, cache: Path) -> str:
    """What is said of a file of the cache that can't be read."""
    return f"{path} can't be read: {why}. Run: dcae-cache verify {cache}"


def _public_recipe(recipe: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Where a model was found is told by its last name; it doesn't count for the fingerprint."""
    return {**recipe, "model_source": names.public(recipe["model_source"])}


def _with_texts(table: pa.Table, column: str, public: Callable[[str], str]) -> pa.Table:
    """The table with every text of the column made public; the very same table where nothing changes."""
    distinct = table[column].combine_chunks().dictionary_encode()
    texts = distinct.dictionary.to_pylist()
    changed = [public(text) for text in texts]
    if changed == texts:
        return table
    values = pa.array(changed, distinct.dictionary.type).take(distinct.indices)
    return table.set_column(table.column_names.index(column), table.schema.field(column), values)
