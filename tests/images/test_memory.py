"""Huge images: how many are decoded at once, and what one of them costs."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from dcae_cache.images import memory
from dcae_cache.images.memory import room_for

COST = """
import resource, struct, sys, zlib
from dcae_cache.images.buckets import BucketRule
from dcae_cache.images.pixels import load_pixels

def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

side, depth, kind, size = map(int, sys.argv[1:])
packer, lines = zlib.compressobj(9), bytes(1 + side * size)
packed = b"".join(packer.compress(lines) for _ in range(side)) + packer.flush()
header = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
png = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels = load_pixels(png, BucketRule(kind="square", resolution=64), 10**9).data
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 // side**2, pixels.max())
"""


@pytest.mark.parametrize(("depth", "kind", "size", "level"), [(8, 6, 4, 255), (16, 0, 2, 0), (16, 6, 8, 255)])
def test_a_huge_image_costs_few_bytes_a_pixel(depth: int, kind: int, size: int, level: int) -> None:
    """Pillow's own copy is 4 bytes a pixel (2 of 16-bit grey), and one more of the colours on white is made of it."""
    arguments = [sys.executable, "-c", COST, "3500", str(depth), str(kind), str(size)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    cost, found = map(int, done.stdout.split())
    assert found == level  # transparent pixels are white
    assert cost <= 12


def test_small_images_never_wait_and_large_ones_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE", 100)
    monkeypatch.setattr(memory, "_AT_ONCE", 250)
    inside: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def work(num_pixels: int) -> None:
        with room_for(num_pixels):
            with lock:
                inside.append(num_pixels)
                most.append(sum(n for n in inside if n >= 100))
            threading.Event().wait(0.002)
            with lock:
                inside.remove(num_pixels)

    threads = [threading.Thread(target=work, args=(n,)) for n in (120, 130, 99, 240, 1000, 120, 99, 250, 110, 140) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert all(taken <= 250 or taken == 1000 for taken in most)
    assert max(most) == 1000, "one that is larger than all the room gets it alone"
    with room_for(1000), room_for(99):  # a small one passes even now
        assert memory._taken == 1000
    assert memory._taken == 0


def test_room_is_given_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE", 1)
    with pytest.raises(ValueError, match="broken"), room_for(10):
        raise ValueError("broken")
    assert memory._taken == 0
