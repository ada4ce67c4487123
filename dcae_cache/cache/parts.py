"""One part on disk: a safetensors shard of latents and a parquet table that commits it (docs/format.md).

The shard is written first, the table after it: a part whose table is there is whole. Both writers give the same bytes
for the same input. Knows nothing of sources, models or how latents are made.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CacheError, one_line
from ..files import open_regular, replace_atomically
from ..ledger import Counts
from ..records import CAPTION_BYTES, FORMAT_NAME, FORMAT_VERSION, VIEW_COLUMNS, Row
from ..text import parse_json
from .moments import ChannelMoments
from .safetensors_io import write_safetensors
from .shape import COUNT, check_shape, mapping_of
from .tables import read_table as read_bounded

if TYPE_CHECKING:  # who reads tables doesn't wait for torch
    from torch import Tensor

PARTS_FOLDER = "parts"

_OF_IMAGES = ("source_hash", "image")
_TEXT = ("key", "status", "reason", "detail", "caption", "label", "attributes", "source", "shard", *_OF_IMAGES)
TABLE_SCHEMA = pa.schema(
    [
        pa.field(
            column.name,
            pa.string() if column.name in _TEXT else pa.int64() if column.name == "source_bytes" else pa.int32(),
            nullable=column.name not in ("key", "status", "source"),
        )
        for column in fields(Row)
    ]
)

PLAIN_SCHEMA = pa.schema([column for column in TABLE_SCHEMA if column.name not in VIEW_COLUMNS])


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Of a part whose images may have several rows: how many images they are of, how many of those have a caption and
    a label, and how many sizes were left out, the images being too small for them."""

    images: int
    left_out: int = 0
    with_caption: int = 0
    with_label: int = 0


@dataclass(frozen=True, slots=True)
class TableFile:
    """The file that a part's info was read from: what tells that it is still the same, and its sha256 where known."""

    stamp: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInfo:
    """What a part's table says of the part, without reading its rows."""

    name: str
    fingerprint: str  # of the recipe
    entries_sha256: str  # of the planned entries it was made for
    num_samples: int  # stored latents
    skipped: Mapping[str, int]  # reason -> samples
    buckets: Mapping[str, int]  # "{height}x{width}" in pixels -> samples
    shard_num_bytes: int
    shard_sha256: str
    moments: ChannelMoments
    with_caption: int = 0  # images, skipped ones too
    with_label: int = 0
    met: Counts | None = None  # beside its samples, in the input file it was made from
    views: Views | None = None  # where images may have several rows
    table: TableFile | None = field(default=None, compare=False, repr=False)  # where it was read, not made

    @property
    def num_skipped(self) -> int:
        return sum(self.skipped.values())

    @property
    def num_images(self) -> int:
        """Of all rows, skipped ones too."""
        return self.num_samples + self.num_skipped if self.views is None else self.views.images


@dataclass(frozen=True, slots=True, kw_only=True)
class PartContent:
    """A part's result in memory. ``tensors``: name -> [N, c, h, w], names as ``tensor_name`` gives them."""

    name: str
    entries_sha256: str
    rows: Sequence[Row]
    tensors: Mapping[str, Tensor]
    met: Counts | None = None
    left_out: int = 0


def tensor_name(height: int, width: int, *, flip: bool = False) -> str:
    """Name of the tensor that holds all latents of one size; ``height`` and ``width`` in latent cells."""
    return f"latents{'_flip' if flip else ''}.{height}x{width}"


def shard_path(cache: Path, name: str) -> Path:
    return cache / PARTS_FOLDER / f"{name}.safetensors"


def table_path(cache: Path, name: str) -> Path:
    return cache / PARTS_FOLDER / f"{name}.parquet"


def shard_header(recipe: Mapping[str, Any], fingerprint: str) -> dict[str, str]:
    """What every shard says of itself, so that a file that lost its cache can still be used."""
    return {
        "format": FORMAT_NAME,
        "version": str(FORMAT_VERSION),
        "fingerprint": fingerprint,
        "model": recipe["model"],
        "weights_sha256": recipe["weights_sha256"] or "unknown",
        "spatial_compression_ratio": str(recipe["spatial_compression_ratio"]),
        "scaled": "true",
        "scaling_factor": repr(recipe["scaling_factor"]),
    }


def file_stamp(status: os.stat_result) -> str:
    """What tells a table's file from the one before it: each is written apart, then given its name."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def commit_part(cache: Path, content: PartContent, header: Mapping[str, str], num_channels: int) -> PartInfo:
    """Write a part's shard, then its table. ``header`` becomes the shard's metadata and must state the fingerprint.

    Raises CacheError when the disk is full or the folder can't be written; then the part isn't committed.
    """
    with replace_atomically(shard_path(cache, content.name)) as file:
        sha256, num_bytes = write_safetensors(file, content.tensors, header)
    kept = [row for row in content.rows if row.status == "ok"]
    plain = [tensor for name, tensor in sorted(content.tensors.items()) if name.startswith("latents.")]
    info = PartInfo(
        name=content.name,
        fingerprint=header["fingerprint"],
        entries_sha256=content.entries_sha256,
        num_samples=len(kept),
        skipped=dict(sorted(Counter(row.reason or "unknown" for row in content.rows if row.status != "ok").items())),
        buckets=dict(sorted(Counter(str(row.bucket) for row in kept).items())),
        shard_num_bytes=num_bytes,
        shard_sha256=sha256,
        moments=ChannelMoments.of(plain, num_channels),
        met=content.met,
        views=Views(images=0, left_out=content.left_out),
    )
    return write_table(cache, info, content.rows)


def write_table(cache: Path, info: PartInfo, rows: Sequence[Row]) -> PartInfo:
    """Write a part's table, which commits the part. The rows must be those that ``info`` counts, but for captions,
    labels and attributes: these are counted here, and the info that says so is returned."""
    unread = sum(row.caption is None and f'"{CAPTION_BYTES}"' in (row.attributes or "") for row in rows)
    met = Counts() if info.met is None else replace(info.met)
    met.unread_captions = unread
    of_images = {row.image_key: row for row in rows}.values()
    with_caption = sum(row.caption is not None for row in of_images)
    with_label = sum(row.label is not None for row in of_images)
    views, schema = None, PLAIN_SCHEMA
    if any(row.image is not None for row in rows):
        left_out = info.views.left_out if info.views else 0
        views = Views(images=len(of_images), left_out=left_out, with_caption=with_caption, with_label=with_label)
        schema = TABLE_SCHEMA
    info = replace(info, with_caption=with_caption, with_label=with_label, views=views)
    info = replace(info, met=None if met.is_plain else met, table=None)
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    with replace_atomically(table_path(cache, info.name)) as file:
        pq.write_table(table.replace_schema_metadata(_table_metadata(info)), file, compression="zstd")
    return info


def read_part_info(cache: Path, name: str) -> PartInfo | None:
    """The info of a committed part, or None where it has no table.

    Raises CacheError when there is a table, but not one of this format.
    """
    path = table_path(cache, name)
    try:
        with open_regular(path) as file:
            stamp = file_stamp(os.fstat(file.fileno()))
            footer = pq.read_metadata(file)
        metadata = footer.schema.to_arrow_schema().metadata or {}
        texts = {key.decode(): value.decode() for key, value in metadata.items()}
        if "dcae_cache.views" not in texts:  # which count captions and labels
            texts |= {f"with_{column}": str(_count(path, footer, column)) for column in ("caption", "label")}
        return replace(part_info_of(name, texts), table=TableFile(stamp))
    except FileNotFoundError:
        return None
    except (pa.ArrowException, KeyError, ValueError, TypeError, OSError) as error:
        raise CacheError(f"{path} is not a readable table of this format: {one_line(error)}") from error


def read_rows(cache: Path, name: str) -> pa.Table:
    """All rows of a committed part, columns as in TABLE_SCHEMA, null where they aren't stored.

    Raises CacheError when they can't be read.
    """
    return read_table(table_path(cache, name))


def read_table(path: Path) -> pa.Table:
    """All rows of a part's table, wherever the file lies; as ``read_rows``."""
    try:
        table = read_bounded(path).replace_schema_metadata(None)
        for column in TABLE_SCHEMA:
            if column.nullable and column.name not in table.column_names:  # of a release that hadn't it yet
                table = table.append_column(column, pa.nulls(table.num_rows, column.type))
        return table.select(TABLE_SCHEMA.names).cast(TABLE_SCHEMA)
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise CacheError(f"{path} is not a readable table of this format: {one_line(error)}") from error


def _count(path: Path, footer: pq.FileMetaData, column: str) -> int:
    """Rows with a value in a column, by the file's own statistics where it has them."""
    place = footer.schema.to_arrow_schema().get_field_index(column)
    groups = [footer.row_group(number).column(place).statistics for number in range(footer.num_row_groups)]
    if all(group is not None and group.has_null_count for group in groups):
        return int(footer.num_rows - sum(group.null_count for group in groups))
    values = pq.read_table(path, columns=[column])[column]
    return len(values) - int(values.null_count)


def _table_metadata(info: PartInfo) -> dict[str, str]:
    own = {} if info.met is None else {"dcae_cache.met": json.dumps(info.met.to_json())}
    own |= {} if info.views is None else {"dcae_cache.views": json.dumps(asdict(info.views))}
    return own | {
        "dcae_cache.format": FORMAT_NAME,
        "dcae_cache.version": str(FORMAT_VERSION),
        "dcae_cache.fingerprint": info.fingerprint,
        "dcae_cache.entries_sha256": info.entries_sha256,
        "dcae_cache.shard_sha256": info.shard_sha256,
        "dcae_cache.shard_num_bytes": str(info.shard_num_bytes),
        "dcae_cache.num_samples": str(info.num_samples),
        "dcae_cache.skipped": json.dumps(dict(info.skipped)),
        "dcae_cache.buckets": json.dumps(dict(info.buckets)),
        "dcae_cache.channel_moments": json.dumps(info.moments.to_json()),
    }


def info_to_json(info: PartInfo) -> dict[str, str]:
    """All that an info says, but for its name, as texts by their names."""
    return _table_metadata(info) | {"with_caption": str(info.with_caption), "with_label": str(info.with_label)}


def part_info_of(name: str, metadata: Mapping[str, str]) -> PartInfo:
    """The inverse of ``info_to_json``. Raises KeyError, TypeError and ValueError where it isn't that."""
    found = metadata["dcae_cache.format"], metadata["dcae_cache.version"]
    if found != (FORMAT_NAME, str(FORMAT_VERSION)):
        raise ValueError(f"format {found[0]} version {found[1]}; this release reads {FORMAT_NAME} {FORMAT_VERSION}")
    views = Views(**_counts(metadata["dcae_cache.views"])) if "dcae_cache.views" in metadata else None
    return PartInfo(
        name=name,
        fingerprint=metadata["dcae_cache.fingerprint"],
        entries_sha256=metadata["dcae_cache.entries_sha256"],
        num_samples=int(metadata["dcae_cache.num_samples"]),
        skipped=_counts(metadata["dcae_cache.skipped"]),
        buckets=_counts(metadata["dcae_cache.buckets"]),
        shard_num_bytes=int(metadata["dcae_cache.shard_num_bytes"]),
        shard_sha256=metadata["dcae_cache.shard_sha256"],
        moments=ChannelMoments.from_json(parse_json(metadata["dcae_cache.channel_moments"])),
        met=Counts.from_json(parse_json(metadata["dcae_cache.met"])) if "dcae_cache.met" in metadata else None,
        with_caption=views.with_caption if views else int(metadata["with_caption"]),
        with_label=views.with_label if views else int(metadata["with_label"]),
        views=views,
    )


def _counts(text: str) -> dict[str, int]:
    value: dict[str, int] = parse_json(text)
    check_shape(value, mapping_of(lambda name: isinstance(name, str), COUNT), "a count")
    return value
