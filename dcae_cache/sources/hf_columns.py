"""What the columns of a Hugging Face dataset are for, image, key, caption, label, attributes, and a cell's image.

Knows nothing of how a dataset is opened or listed.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import SampleSkipped, SourceError, one_line
from ..text import without_infinity
from ..urls import is_url
from .base import SourceOptions, too_large
from .beside import Beside, note_kinds
from .fetching import fetch, place_beside
from .fields import Notes, notes_of
from .tar_groups import IMAGE_KINDS

KEY_NAMES = ("__key__", "key", "id")
_OF_WEBDATASET = ("__key__", "__url__")
IMAGE_NAMES = ("image", "jpg", "png", "img", "bytes", "image_path", "path", "file_name", "url", "image_url")


@dataclass(frozen=True)
class Columns:
    """What the columns are for."""

    image: str
    keys: list[str]  # that may hold the key
    values: list[str]  # that may become caption, label or attribute
    classes: Mapping[str, list[str]]  # names of the classes of the columns that number them
    of_tars: bool = False  # columns are suffixes of tar members, as datasets' webdataset loader names them

    @property
    def used(self) -> list[str]:
        return [self.image, *(name for name in self.values if name != self.image)]

    def notes(self, row: Mapping[str, Any], key: str | None, options: SourceOptions) -> Notes:
        """What the row says. The key is none of it, unless the options say so."""
        named = (options.caption_column, options.label_column)
        values = {name: self._plain(name, row[name]) for name in self.values if name != key or name in named}
        notes = _notes_of_tar(values, options) if self.of_tars else notes_of(values, options)
        if notes.label is None and not options.label_column and len(self.classes) == 1:
            attributes = dict(notes.attributes)
            return Notes(notes.caption, attributes.pop(next(iter(self.classes)), None), attributes)
        return notes

    def _plain(self, name: str, value: Any) -> Any:
        names = self.classes.get(name)
        if names is None or not isinstance(value, int):
            return without_infinity(_json_able(value))
        return names[value] if 0 <= value < len(names) else None


def choose_columns(uri: str, features: Mapping[str, Any], options: SourceOptions) -> Columns:
    import datasets

    schema = datasets.Features(features).arrow_schema
    for option, wanted in (("caption", options.caption_column), ("label", options.label_column)):
        if wanted and not _has_column(features, wanted):
            raise _no_column(uri, wanted, features, option)
    image = _image_column(uri, features, schema, options)
    keys = [name for name in KEY_NAMES if name in features and name != image and _may_be_key(schema.field(name).type)]
    values = [name for name in features if name != image and not _holds_binary(schema.field(name).type)]
    classes = {name: features[name].names for name in values if isinstance(features[name], datasets.ClassLabel)}
    of_tars = "__key__" in features and image in IMAGE_KINDS
    return Columns(image, [key for key in keys if key not in classes], values, classes, of_tars)


def _has_column(features: Mapping[str, Any], name: str) -> bool:
    """Whether there is such a column, or one with such a field in it. The fields of ``json`` can be named alone, as in
    a tar."""
    inner = features.get("json")
    return name.partition(".")[0] in features or (isinstance(inner, Mapping) and name.partition(".")[0] in inner)


def _notes_of_tar(values: dict[str, Any], options: SourceOptions) -> Notes:
    """The notes of a row whose columns were members of a tar: what the tar itself gives."""
    values = {name: value for name, value in values.items() if value is not None and name not in _OF_WEBDATASET}
    beside = Beside({name: value for name, value in values.items() if name not in note_kinds(options)}, options)
    for kind in note_kinds(options):
        value = values.get(kind)
        if kind == "json" and isinstance(value, Mapping):
            value = json.dumps({name: item for name, item in value.items() if item is not None})
        elif kind == "json" and isinstance(value, list):
            value = json.dumps(value)
        if value is not None:
            beside.add(kind, str(value).encode("utf-8", "surrogatepass"), kind)
    return beside.notes()


def _image_column(uri: str, features: Mapping[str, Any], schema: pa.Schema, options: SourceOptions) -> str:
    import datasets

    wanted = options.image_column
    if wanted and wanted not in features:
        raise _no_column(uri, wanted, features, "image")
    if wanted and not _may_be_image(schema.field(wanted).type):
        kind = _kinds({wanted: features[wanted]})
        raise SourceError(f"No images are in column {kind} of {uri}; it has: {_kinds(features)}. Choose another.")
    if wanted:
        return wanted
    images = [name for name in features if isinstance(features[name], datasets.Image)]
    if len(images) > 1 and "image" not in images:
        raise SourceError(f"{uri} has the image columns {', '.join(images)}: choose one with `image_column`.")
    if images:
        return "image" if "image" in images else images[0]
    spelled = {name.lower(): name for name in reversed(list(features))}
    for usual in IMAGE_NAMES:
        name = usual if usual in features else spelled.get(usual)
        if name is not None and _may_be_image(schema.field(name).type):
            return name
    raise SourceError(f"{uri} has no image column; it has: {_kinds(features)}. Choose one with `image_column`.")


def _no_column(uri: str, wanted: str, features: Mapping[str, Any], option: str) -> SourceError:
    return SourceError(
        f"There is no column {wanted} in {uri}; it has: {', '.join(features)}. Choose one with `{option}_column`."
    )


def _kinds(features: Mapping[str, Any]) -> str:
    """Columns with their types, as a person would say them."""
    return ", ".join(
        f"{name} ({getattr(kind, 'dtype', None) if type(kind).__name__ == 'Value' else type(kind).__name__})"
        for name, kind in features.items()
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _may_be_key(kind: pa.DataType) -> bool:
    return bool(_is_text(kind) or pa.types.is_integer(kind))


def _may_be_image(kind: pa.DataType) -> bool:
    """Bytes, a path, or both in one."""
    return _is_text(kind) or _is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _holds_binary(kind: pa.DataType) -> bool:
    """Images, sounds and videos are stored with their bytes; JSON has no place for such."""
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_binary(kind.storage_type)
    return _is_binary(kind) or any(_holds_binary(kind.field(index).type) for index in range(kind.num_fields))


def is_unique(column: pa.ChunkedArray) -> bool:
    if column.null_count or pc.count_distinct(column).as_py() != len(column):
        return False
    return not _is_text(column.type) or not pc.any(pc.equal(column, "")).as_py()


def texts(column: pa.ChunkedArray) -> Iterator[str]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), 65_536):
            yield from map(str, chunk.slice(start, 65_536).to_pylist())


def _json_able(value: Any) -> Any:
    """Lists and dicts stay; dates and whatever else JSON lacks become text."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _json_able(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_able(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


@dataclass(frozen=True, slots=True)
class Places:
    """Which files the rows may name. ``folder``: where paths without a start begin; where it is a URL, rows name no
    file of this machine. ``within``: the folders that paths may lie in, for a dataset that came from elsewhere; None:
    anywhere on this machine."""

    folder: str | None
    within: tuple[Path, ...] | None
    options: SourceOptions


def image_bytes(value: Any, places: Places) -> bytes:
    """The encoded image that a cell holds or names."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return _bounded(value["bytes"], places)
        value = value.get("path")
        if places.folder is not None and not is_url(places.folder):
            places = replace(places, folder=None)
    if value is None or value == "":
        raise SampleSkipped("missing", "the row has no image")
    return _bounded(value, places) if isinstance(value, bytes) else _read_path(str(value), places)


def num_held(value: Any) -> int:
    """The bytes of an image that a cell holds."""
    held = value.get("bytes") if isinstance(value, Mapping) else value
    return len(held) if isinstance(held, bytes) else 0


def _bounded(data: bytes, places: Places) -> bytes:
    if len(data) > places.options.max_bytes:
        raise too_large("the cell", len(data), places.options.max_bytes)
    return bytes(data)


def _read_path(path: str, places: Places) -> bytes:
    """Read a regular file; anything else is refused before it is opened: a pipe would block for ever."""
    folder, max_bytes = places.folder, places.options.max_bytes
    try:
        if folder is not None and is_url(folder):
            return fetch(place_beside(folder, path), places.options)
        if "hf://" in path and "file:" not in path:  # of a dataset that is streamed from the Hub
            import fsspec

            with fsspec.open(path, "rb") as remote:
                return _bounded(remote.read(max_bytes + 1), places)
        if is_url(path):
            if places.within is not None and path.partition("://")[0].lower() not in ("http", "https"):
                raise SampleSkipped("unreadable", f"a dataset of the Hub names {path}: not read")
            return fetch(path, places.options)
        place = Path(path)
        if folder is not None and (folder / place).exists():
            place = folder / place
        within, real = places.within, place.resolve()
        if within is not None and not any(real.is_relative_to(home.resolve()) for home in within):
            raise SampleSkipped("unreadable", f"a dataset of the Hub names a file of this machine, {path}: not read")
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SampleSkipped("unreadable", "not a regular file")
        if status.st_size > max_bytes:
            raise too_large(path, status.st_size, max_bytes)
        return place.read_bytes()
    except SampleSkipped:
        raise
    except FileNotFoundError as error:
        raise SampleSkipped("missing", f"there is no file {path}") from error
    except Exception as error:  # of the file system or of any remote one
        raise SampleSkipped("unreadable", one_line(error)) from error
