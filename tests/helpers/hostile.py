"""Caches and tars as somebody with bad intent would make them, for tests: every hash agrees."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcae_cache.cache.index import checksum
from dcae_cache.cache.plan import PLAN_NAME
from dcae_cache.files import sha256_of_file


def change_plan(
    cache: Path,
    *,
    source: str | None = None,
    options: Mapping[str, Any] | None = None,
    entries: Callable[[list[dict[str, Any]]], None] = lambda entries: None,
) -> None:
    """Write another source, other options or entries into a plan, and the index that fits it."""
    table = pq.read_table(cache / PLAN_NAME)
    rows = table.to_pylist()
    entries(rows)
    metadata = dict(table.schema.metadata)
    if source is not None:
        metadata[b"dcae_cache.source"] = source.encode()
    if options is not None:
        metadata[b"dcae_cache.source_options"] = json.dumps(dict(options)).encode()
    table = pa.Table.from_pylist(rows, table.schema).replace_schema_metadata(metadata)
    pq.write_table(table, cache / PLAN_NAME)

    def renew(index: dict[str, Any]) -> None:
        index["plan_sha256"] = sha256_of_file(cache / PLAN_NAME)
        if source is not None:
            index["source"]["uri"] = source

    change_index(cache, renew)


def change_index(cache: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change an index in any way and make its checksum agree."""
    index = json.loads((cache / "index.json").read_text())
    change(index)
    index["checksum"] = checksum(index)
    (cache / "index.json").write_text(json.dumps(index))


def add_zeros(archive: tarfile.TarFile, name: str, count: int) -> None:
    """A member of so many zero bytes."""
    info = tarfile.TarInfo(name)
    info.size = count
    archive.addfile(info, _Zeros(count))  # type: ignore[arg-type]  # tarfile reads it, and no more


def sparse_member(name: str, size: int) -> bytes:
    """The header and data of an old GNU sparse member that stands for ``size`` bytes and holds one block."""
    info = tarfile.TarInfo(name)
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:398] = b"%011o\0" % (size - 512)  # where the one piece of data lies
    header[398:410] = b"%011o\0" % 512
    header[483:495] = size.to_bytes(12, "big") if size >= 8**11 else b"%011o\0" % size
    if size >= 8**11:
        header[483] |= 0x80
        header[386:398] = (size - 512).to_bytes(12, "big")
        header[386] |= 0x80
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512)


class _Zeros(io.RawIOBase):
    def __init__(self, count: int) -> None:
        self._left = count

    def read(self, count: int = -1) -> bytes:
        given = min(self._left, count)
        self._left -= given
        return bytes(given)


def xz_with_dictionary(data: bytes, size: int) -> bytes:
    """``data`` packed, saying that unpacking takes a dictionary of a size by its number in the format: 40 is 4 GiB."""
    packed = bytearray(lzma.compress(data, preset=0))
    start = 12  # of the block header, behind that of the stream
    length = 4 * (packed[start] + 1)
    assert packed[start + 2] == 0x21, "the one filter is LZMA2"
    packed[start + 4] = size
    end = start + length - 4
    packed[end : end + 4] = zlib.crc32(packed[start:end]).to_bytes(4, "little")
    return bytes(packed)


def zeros_in_gzip(head: bytes, gibibytes: int) -> bytes:
    """``head`` and so many GiB of zeros as one gzip file of a few megabytes, made in no time: streams may stand behind
    one another."""
    block = gzip.compress(bytes(2**26), compresslevel=9)
    return gzip.compress(head) + block * (16 * gibibytes)
