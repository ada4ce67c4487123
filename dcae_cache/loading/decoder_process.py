"""A process that decodes images for the one that started it (decoders.py): bytes in, fitted pixels out.

It lives as long as the connection to that process, and writes nothing but memory that both share. Knows nothing of
parts, rows or where images come from: a file's path, or the bytes themselves, are all it is told.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import SampleSkipped, one_line
from ..images.memory import LARGE
from ..images.pixels import load_fitted
from ..images.views import Fitting, View
from ..records import ImageFile
from ..sources.local_files import read_image_file
from .rows import patiently
from .shared_pixels import SharedBytes

_EXPENDABLE = "500"  # of 1000: where memory runs out, rather this process than the one it works for


@dataclass(frozen=True, slots=True)
class Order:
    """Images to decode, with their keys: files, or numbers of bytes that stand one after the other at the beginning of
    the shared memory. Pixels go into it from ``offset`` on, one picture after the other."""

    images: Sequence[tuple[str, ImageFile | int]]
    offset: int


class Picture(NamedTuple):
    """One view of an image, whose pixels, of the size of its bucket, stand in the shared memory; ``planar``: one band
    after the other."""

    view: View
    planar: bool

    @property
    def num_bytes(self) -> int:
        return self.view.bucket.height * self.view.bucket.width * 3


class Fitted(NamedTuple):
    """What became of one image: its pictures, or why there are none. Of one that could not be read ``num_bytes`` is
    None."""

    num_bytes: int | None
    sha256: str = ""
    skip: tuple[str, str] | None = None  # reason and detail
    original: tuple[int, int] = (0, 0)  # upright height and width
    pictures: tuple[Picture, ...] = ()


class _Server:
    """Answers orders until the other side is gone."""

    def __init__(self, connection: Connection, memory: SharedBytes) -> None:
        self._connection, self._memory = connection, memory
        self._fitting: Fitting
        self._max_pixels: int

    def serve(self) -> None:
        self._fitting, self._max_pixels = self._connection.recv()
        self._connection.send(True)  # ready
        while True:
            order: Order = self._connection.recv()
            try:
                self._connection.send(self._carry_out(order))
            except (EOFError, BrokenPipeError):
                raise
            except Exception as error:  # told to whoever waits for the result, as on a thread
                self._connection.send(f"{type(error).__name__}: {one_line(error)}")

    def _carry_out(self, order: Order) -> list[Fitted]:
        answers: list[Fitted] = []
        start, place = 0, order.offset
        for key, image in order.images:
            fitted = self._decode(key, image, start, place)
            start += 0 if isinstance(image, ImageFile) else image
            place += sum(picture.num_bytes for picture in fitted.pictures)
            answers.append(fitted)
        return answers

    def _decode(self, key: str, image: ImageFile | int, start: int, place: int) -> Fitted:
        num_bytes, sha256 = None, ""
        try:
            if isinstance(image, ImageFile):
                data = patiently(partial(read_image_file, image))
            else:
                data = self._memory.read(image, start)
            num_bytes, sha256 = len(data), hashlib.sha256(data).hexdigest()
            found = load_fitted(data, key, self._fitting, self._max_pixels, self._room)
        except SampleSkipped as skip:
            return Fitted(num_bytes, sha256, (skip.reason, skip.detail))
        except (EOFError, BrokenPipeError):
            raise
        except OSError as error:
            return Fitted(num_bytes, sha256, ("unreadable", str(error)))
        pictures = []
        for view, pixels in found:
            planar = not pixels.data.flags.c_contiguous
            laid_out = np.ascontiguousarray(pixels.data.transpose(2, 0, 1) if planar else pixels.data)
            self._memory.write(laid_out.reshape(-1).data, place)
            pictures.append(Picture(view, planar))
            place += pictures[-1].num_bytes
        whole = found[0][1]
        return Fitted(num_bytes, sha256, None, (whole.height, whole.width), tuple(pictures))

    @contextmanager
    def _room(self, num_pixels: int) -> Iterator[None]:
        """Room among all decoders, which the other side gives: it hears of the number, and of 0 when it is done."""
        if num_pixels < LARGE:
            yield
            return
        self._connection.send(num_pixels)
        self._connection.recv()
        try:
            yield
        finally:
            self._connection.send(0)


def main() -> None:
    """Serve the process that passed the descriptors of the connection and of the shared memory."""
    with suppress(OSError):  # another system
        Path("/proc/self/oom_score_adj").write_text(_EXPENDABLE)
    connection, memory = Connection(int(sys.argv[-2])), SharedBytes(int(sys.argv[-1]))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # there is nobody to work for any more
        _Server(connection, memory).serve()


if __name__ == "__main__":
    main()
