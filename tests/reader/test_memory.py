"""Blocks of memory are copied from wherever they lie, of any size, in the order asked for."""

import numpy as np
import pytest

from dcae_cache.reader.memory import blocks_at


@pytest.mark.parametrize("size", [1, 3, 1024, 16384, 16386, 65536, 100_003])
def test_blocks_of_several_arrays(size: int) -> None:
    random = np.random.default_rng(size)
    arrays = [random.integers(0, 256, (count, size), dtype=np.uint8) for count in (5, 1, 9)]
    which, row = random.integers(0, 3, 20), random.integers(0, 9, 20)
    row %= np.array([len(array) for array in arrays])[which]
    addresses = np.array([array.ctypes.data for array in arrays])[which] + row * size
    expected = np.stack([arrays[a][r] for a, r in zip(which, row, strict=True)])
    copied = blocks_at(addresses, size)
    assert (copied == expected).all()
    copied[:] = 0  # a copy, that may be written to
    assert all(array.any() for array in arrays)
