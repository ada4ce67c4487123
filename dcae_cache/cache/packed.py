"""Values of a row side by side in a column of their own, beside the columns that hold them one by one.

Reading a row at random touches memory once then, where it would once a column. Which columns they are of stands with
the packed column's field. Knows nothing of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MISSING_NUMBER = -1  # in the place of a number that is missing; of a text, that is ""
SEPARATOR = "\0"  # behind each text. Where a text has one itself, there are more of them than there should be
_OF = b"columns"


def packed_texts(name: str, columns: Sequence[str]) -> pa.Field:
    """A column of that name for texts (large_string), each followed by a separator."""
    return pa.field(name, pa.large_string(), metadata={_OF: "\n".join(columns)})


def packed_numbers(name: str, columns: Sequence[str]) -> pa.Field:
    """A column of that name for numbers (int32)."""
    return pa.field(name, pa.list_(pa.int32(), len(columns)), metadata={_OF: "\n".join(columns)})


def columns_in(field: pa.Field) -> tuple[str, ...]:
    """The columns whose values a column packs, in order; none where it is no packed one."""
    of = (field.metadata or {}).get(_OF, b"").decode()
    return tuple(of.split("\n")) if of else ()


def with_packed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table's columns in the types of the schema, and the packed columns that the schema has beside them."""
    plain = pa.schema([field for field in schema if not columns_in(field)])
    table = table.cast(plain)
    for field in schema:
        if names := columns_in(field):
            pack = _numbers if pa.types.is_fixed_size_list(field.type) else _texts
            table = table.append_column(field, pack(table, names))
    return table


def _texts(table: pa.Table, names: Sequence[str]) -> pa.ChunkedArray:
    # An empty one more, so that the last text is followed by a separator, too.
    texts = [*(table[name] for name in names), pa.scalar("", pa.large_string())]
    return pc.binary_join_element_wise(
        *texts, pa.scalar(SEPARATOR, pa.large_string()), null_handling="replace", null_replacement=""
    )


def _numbers(table: pa.Table, names: Sequence[str]) -> pa.FixedSizeListArray:
    columns = [pc.fill_null(table[name], MISSING_NUMBER).to_numpy() for name in names]
    flat = np.stack(columns, 1).astype(np.int32, copy=False).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), len(names))
