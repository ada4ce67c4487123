"""Blocks of memory are copied from wherever they lie, of any size, in the order asked for."""

import numpy as np
import pytest

from dcae_cache.reader.memory import Blocks


@pytest.mark.parametrize("size", [1, 3, 1024, 16384, 16386, 65536, 100_003])
def test_blocks_of_several_arrays(size: int) -> None:
    random = np.random.default_rng(size)
    arrays = [random.integers(0, 256, (count, size), dtype=np.uint8) for count in (5, 1, 9)]
    blocks = Blocks(size)
    for array in arrays:
        blocks.add(array.ctypes.data, len(array))
    which, row = random.integers(0, 3, 20), random.integers(0, 9, 20)
    row %= np.array([len(array) for array in arrays])[which]
    addresses = np.array([array.ctypes.data for array in arrays])[which] + row * size
    expected = np.stack([arrays[a][r] for a, r in zip(which, row, strict=True)])
    copied = blocks.copy(addresses)
    assert (copied == expected).all()
    copied[:] = 0  # a copy, that may be written to
    assert all(array.any() for array in arrays)


@pytest.mark.parametrize("size", [8, 2**15])
def test_blocks_outside_are_refused(size: int) -> None:
    array = np.zeros((4, size), np.uint8)
    start, blocks = array.ctypes.data, Blocks(size)
    with pytest.raises(IndexError):
        blocks.copy(np.array([start]))
    blocks.add(start, 4)
    blocks.add(start + size, 2)  # known already
    for outside in (start - 1, start + 4 * size, start + 3 * size + 1):
        with pytest.raises(IndexError):
            blocks.copy(np.array([start, outside]))
    assert blocks.copy(np.array([start + 3 * size])).shape == (1, size)
