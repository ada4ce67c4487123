"""Writing and mapping safetensors files: the same bytes for the same tensors, and views that copy nothing.

Knows nothing of parts or samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import CacheError, one_line
from ..files import open_regular
from ..text import parse_json

if TYPE_CHECKING:  # who reads tables doesn't wait for torch
    from torch import Tensor

_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
SAFETENSORS_DTYPES = {"torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float32": "F32"}


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, int]:
    """Write a safetensors file; returns its sha256 and size.

    The safetensors library orders metadata differently from one process to the next, and parts must come out the same
    bytes every time: here names are sorted. Tensors are [N, c, h, w] of a stored dtype, on the CPU.
    """
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": SAFETENSORS_DTYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # tensors start aligned
    digest = hashlib.sha256()
    num_bytes = 0
    blocks = [memoryview(len(head).to_bytes(8, "little")), memoryview(head)]
    blocks += [raw_bytes(tensor) for _, tensor in sorted(tensors.items())]
    for block in blocks:
        file.write(block)
        digest.update(block)
        num_bytes += block.nbytes
    return digest.hexdigest(), num_bytes


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row-major, as a view where it is so already."""
    import torch

    # Where a dimension has the size 1, a contiguous tensor may have any stride there, which view() won't take.
    flat = tensor.contiguous().as_strided((tensor.numel(),), (1,))
    view: memoryview = flat.view(torch.uint8).numpy().data
    return view


def map_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard as views of one private memory map: writing to them changes no file.

    The map holds no descriptor, and outlives the file. Raises CacheError for a missing or damaged file.
    """
    import torch

    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        start = 8 + int.from_bytes(data[:8].numpy().tobytes(), "little")
        if start > len(data):
            raise ValueError(f"its header should end at byte {start}, the file at {len(data)}")
        entries = parse_json(data[8:start].numpy().tobytes()) if start <= _MAX_HEADER_BYTES else None
        if not isinstance(entries, dict):
            raise ValueError("its header is no JSON object")
        entries.pop("__metadata__", None)
        return {name: _view(data[start:], entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise CacheError(
            f"{path} can't be read as a shard: {one_line(error)}. Check with: dcae-cache verify --integrity-only"
        ) from error


def read_header(path: Path) -> dict[str, Any]:
    """What a shard says of itself. Raises CacheError like ``map_safetensors``."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            said = parse_json(file.read(length)).get("__metadata__", {}) if length <= _MAX_HEADER_BYTES else []
        return dict(said)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CacheError(f"{path} has no readable header: {one_line(error)}.") from error


def _view(data: Tensor, entry: dict[str, Any]) -> Tensor:
    import torch

    dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[entry["dtype"]]
    (first, last), shape = entry["data_offsets"], entry["shape"]
    if not 0 <= first <= last <= len(data) or min(shape, default=0) < 0:
        raise ValueError(f"a tensor of shape {shape} can't lie at bytes {first} to {last}")
    if math.prod(shape) * dtype.itemsize != last - first:
        raise ValueError(f"a tensor of shape {shape} doesn't take {last - first} bytes")
    values = data[first:last]
    if values.storage_offset() % dtype.itemsize:  # foreign files may start anywhere
        values = values.clone()
    return values.view(dtype).view(shape)
