"""The latents of one part on their way, in memory up to a limit, beyond it in temporary files beside the part.

An input tar may hold any number of samples, and a part is written when it is whole. Knows nothing of samples or rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from ..cache.safetensors_io import raw_bytes
from ..files import temporary_path

MAX_BYTES_IN_MEMORY = 2**27


class LatentBuffer:
    """Appends [N, c, h, w] tensors under a name; ``tensors`` gives each name's rows as one tensor.

    ``path_of`` maps a name to the file its rows may spill to. Leaving the ``with`` block removes these files.
    """

    def __init__(self, path_of: Callable[[str], Path]) -> None:
        self._path_of = path_of
        self._waiting: dict[str, list[Tensor]] = {}
        self._num_bytes = 0
        self._files: dict[str, tuple[Path, BinaryIO]] = {}
        self._counts: dict[str, int] = {}

    def __enter__(self) -> LatentBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, name: str, rows: Tensor) -> int:
        """Keep the rows (CPU tensors that nobody else writes to); returns how many rows the name had before."""
        before = self._counts.get(name, 0)
        self._counts[name] = before + len(rows)
        self._waiting.setdefault(name, []).append(rows)
        self._num_bytes += rows.nbytes
        if self._num_bytes > MAX_BYTES_IN_MEMORY:
            self._spill()
        return before

    def tensors(self) -> dict[str, Tensor]:
        """name -> [N, c, h, w], contiguous; of rows that were spilled, views of the file that end with ``close``."""
        if self._files:
            self._spill()
        return {name: self._mapped(name) if name in self._files else torch.cat(rows) for name, rows in self._all()}

    def close(self) -> None:
        """Forget the rows and remove the files."""
        self._waiting.clear()
        for path, file in self._files.values():
            file.close()
            path.unlink(missing_ok=True)
        self._files.clear()

    def _all(self) -> list[tuple[str, list[Tensor]]]:
        return sorted(self._waiting.items())

    def _spill(self) -> None:
        for name, rows in self._waiting.items():
            if name not in self._files:
                path = temporary_path(self._path_of(name))
                self._files[name] = path, path.open("wb")
            for block in rows:
                self._files[name][1].write(raw_bytes(block))
            # One row tells shape and dtype; none of them holds memory worth counting.
            self._waiting[name] = [rows[0][:0].clone()]
        self._num_bytes = 0

    def _mapped(self, name: str) -> Tensor:
        path, file = self._files[name]
        file.flush()
        sample = self._waiting[name][0]
        shape = (self._counts[name], *sample.shape[1:])
        size = self._counts[name] * sample.shape[1:].numel()
        return torch.from_file(str(path), shared=False, size=size, dtype=sample.dtype).view(shape)
