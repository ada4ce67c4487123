"""One decoding process, as the process that started it sees it: images out, pixels back, through shared memory.

A program is started, never forked: this process may hold a CUDA context. Knows nothing of samples, rows or batches.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing import Pipe
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import one_line
from ..images.memory import room_for
from ..images.views import Fitting
from ..records import ImageFile
from .decoder_process import Fitted, Order, Picture
from .shared_pixels import SharedBytes

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dcae_cache.loading.decoder_process import main; main()"
)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ENDING_SECONDS = 10.0  # that a process may take to end once it has let go of its connection

_Answers = list[tuple[Fitted, list[NDArray[np.uint8]]]]


class DecoderLostError(Exception):
    """A decoding process has ended before it answered, or can't answer; the text says how."""


class Decoder:
    """One decoding process. Used by one thread at a time. Raises OSError where it can't be started, DecoderLostError
    where it has ended at once."""

    def __init__(self, fitting: Fitting, max_pixels: int) -> None:
        self._memory = SharedBytes.new()
        self._connection, theirs = Pipe()
        self.is_ready = False
        descriptors = theirs.fileno(), self._memory.descriptor
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path), *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | _ONE_THREAD,
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C reaches this process alone
            )
        except BaseException:
            self._connection.close()
            self._memory.close()
            raise
        finally:
            theirs.close()
        try:
            self._tell((fitting, max_pixels))
        except DecoderLostError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self, seconds: float | None = None) -> bool:
        """Whether it has started, by then; None: however long that takes. Raises DecoderLostError."""
        if not self.is_ready:
            try:
                self.is_ready = self._connection.poll(seconds) and bool(self._connection.recv())
            except (OSError, EOFError) as error:
                raise DecoderLostError(self._ending()) from error
        return self.is_ready

    def decode(self, images: Sequence[tuple[str, ImageFile | bytes]]) -> _Answers:
        """What became of each image, given with its key, and the pixels of its pictures, uint8 [height, width, 3].
        Raises DecoderLostError."""
        self.wait_until_ready()
        offset, told = 0, []
        for key, image in images:
            if isinstance(image, bytes):
                self._give(image, offset)
                offset += len(image)
            told.append((key, image if isinstance(image, ImageFile) else len(image)))
        self._tell(Order(told, offset))
        answers: _Answers = []
        for fitted in self._answer():
            answers.append((fitted, []))
            for picture in fitted.pictures:
                answers[-1][1].append(self._pixels(picture, offset))
                offset += picture.num_bytes
        self._memory.shrink()
        return answers

    def close(self) -> None:
        """End the process, whatever it is at: nothing but memory is lost."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._memory.close()

    def _give(self, data: bytes, offset: int) -> None:
        try:
            self._memory.write(data, offset)
        except OSError as error:  # no memory
            raise DecoderLostError(one_line(error)) from error

    def _tell(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise DecoderLostError(self._ending()) from error

    def _answer(self) -> list[Fitted]:
        """The answer to an order. Before it, the process may ask for room for a large image, and say when it is done
        with that."""
        with ExitStack() as room:
            while True:
                try:
                    message = self._connection.recv()
                except (OSError, EOFError) as error:
                    raise DecoderLostError(self._ending()) from error
                if isinstance(message, str):
                    raise DecoderLostError(message)
                if isinstance(message, list):
                    return message
                room.close()
                if message:
                    room.enter_context(room_for(message))
                    self._tell(True)

    def _pixels(self, picture: Picture, offset: int) -> NDArray[np.uint8]:
        size = picture.view.bucket.height, picture.view.bucket.width
        pixels = np.empty((3, *size) if picture.planar else (*size, 3), dtype=np.uint8)
        try:
            self._memory.read_into(pixels, offset)
        except (OSError, EOFError) as error:
            raise DecoderLostError(one_line(error)) from error
        return pixels.transpose(1, 2, 0) if picture.planar else pixels

    def _ending(self) -> str:
        try:
            code = self._process.wait(_ENDING_SECONDS)  # its end of the connection is closed
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
