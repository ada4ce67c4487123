"""How many pixels are decoded at once: a huge image waits until there is room for it. Knows nothing of images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

LARGE = 2**26  # pixels; smaller images never wait
_AT_ONCE = 2**28  # pixels of large images, in all threads together: 1 GB as Pillow keeps them

Room = Callable[[int], AbstractContextManager[None]]  # what ``room_for`` is

_free = threading.Condition()
_taken = 0


@contextmanager
def room_for(num_pixels: int) -> Iterator[None]:
    """Hold room for that many pixels. One image gets its room however large it is, but then it gets it alone."""
    if num_pixels < LARGE:
        yield
        return
    global _taken
    with _free:
        _free.wait_for(lambda: _taken == 0 or _taken + num_pixels <= _AT_ONCE)
        _taken += num_pixels
    try:
        yield
    finally:
        with _free:
            _taken -= num_pixels
            _free.notify_all()
