"""Reading a parquet table of a cache whole, if it can be that large at all. Knows nothing of its columns."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import open_regular
from ..text import human_bytes

# A few kilobytes of parquet can stand for terabytes of text. Real tables take less than a hundred times their file.
_FREE_BYTES = 2**29
_TIMES_THE_FILE = 100


def read_table(path: Path) -> pa.Table:
    """The whole table. Raises ValueError where it would take far more memory than its file makes likely; FileNotFound
    and other errors of the system and of pyarrow come through."""
    with open_regular(path) as handle:
        limit = _FREE_BYTES + _TIMES_THE_FILE * path.stat().st_size
        file = pq.ParquetFile(handle)
        metadata = file.metadata
        if metadata.num_rows > limit // 8 or _declared_bytes(metadata) > limit:
            raise ValueError(_refusal(path, limit))
        if _most_bytes(metadata) <= limit:
            return file.read(use_threads=False)
        texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
        handle.seek(0)
        table = pq.ParquetFile(handle, read_dictionary=texts).read()  # every text once, however often it stands there
        if table.nbytes + sum(_spread_out(table[name]) for name in texts) > limit:
            raise ValueError(_refusal(path, limit))
        plain = [field.with_type(pa.string()) if field.name in texts else field for field in table.schema]
        return table.cast(pa.schema(plain, table.schema.metadata))


def _declared_bytes(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.column(number).total_uncompressed_size for group in groups for number in range(group.num_columns))


def _most_bytes(metadata: pq.FileMetaData) -> int:
    """What the columns could take at most, if every value were as long as its whole column."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(chunk.num_values * max(8, chunk.total_uncompressed_size) for chunk in chunks)


def _spread_out(column: pa.ChunkedArray) -> int:
    """Bytes of a column of texts once every value stands by itself."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary)
        total += pc.sum(pc.take(lengths.cast(pa.int64()), chunk.indices)).as_py() or 0
    return total


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_dictionary(kind))


def _refusal(path: Path, limit: int) -> str:
    return f"{path.name} says it holds more than {human_bytes(limit)}, far more than its size makes likely"
