"""One antialiased Lanczos resample of part of an image: the same filter as Pillow's, about three times as fast.

Pillow resamples with scalar integers and rounds to 8 bits between the two passes. Here each pass is a few small matrix
products, which numpy hands to BLAS, and what lies between them keeps two more bits.

Every product is exact: weights are multiples of 2^-13 and what lies between the passes is rounded to quarters, so that
each partial sum is an integer below 2^24 times a power of two and float32 holds it. The order in which BLAS adds, and
so the machine, the BLAS and the number of threads, can't change a single output pixel.

Knows nothing of files, colours or buckets.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LOBES = 3
_BLOCK = 16  # output rows or columns per product: more wastes work on zeros, fewer leaves BLAS idle
_ONE = 2**13  # the weights of one output pixel are integers that add up to this
_QUARTERS = 4.0
# BLAS starts threads above 2^18 multiplications. Decoding has a pool of threads already, so no product is larger.
_MAX_PRODUCT = 2**18
_MAX_KEPT = 2048  # source and output pixels along one axis, together
_MAX_SCRATCH = 2**20  # values a thread keeps for each step
_MAX_STRIP = 2**22  # values of the source held as float32 at once


def lanczos(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """``image`` (mode L or RGB) inside ``box`` (left, top, right, bottom; fractions of a pixel allowed), resampled to
    ``size`` (height, width): uint8 [height, width, bands], in memory one band after the other. Pixels outside the box
    still count at its borders."""
    height, width = size
    left, top, right, bottom = box
    columns = _weights(image.width, left, right, width, _QUARTERS)
    rows = _weights(image.height, top, bottom, height, 1 / _QUARTERS)
    narrow = _resample_columns(image, columns, rows.start, rows.stop)
    pixels = _resample_rows(narrow, rows)
    pixels += 0.5
    np.clip(pixels, 0, 255, out=pixels)
    return pixels.astype(np.uint8).transpose(1, 2, 0)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Weights along one axis. Output ``number * _BLOCK + i`` is ``blocks[number][i]`` times the inputs from
    ``firsts[number]`` on; every block reads ``taps`` of them, and all read within [start, stop)."""

    num_outputs: int
    taps: int
    start: int
    stop: int
    firsts: tuple[int, ...]
    blocks: tuple[NDArray[np.float32], ...]  # each [up to _BLOCK, taps]


def _weights(num_inputs: int, start: float, stop: float, num_outputs: int, gain: float) -> _Weights:
    """The weights that take [start, stop) of ``num_inputs`` pixels to ``num_outputs``, times ``gain``."""
    # Kept only where they are small, and take a share of the time worth saving: 16 MB at 256 px, 50 at the very most.
    small = stop - start + num_outputs <= _MAX_KEPT
    return (_kept_weights if small else _made_weights)(num_inputs, start, stop, num_outputs, gain)


def _made_weights(num_inputs: int, start: float, stop: float, num_outputs: int, gain: float) -> _Weights:
    scale = (stop - start) / num_outputs
    stretch = max(scale, 1.0)
    centers = start + (np.arange(num_outputs) + 0.5) * scale
    window = np.arange(min(math.floor(2 * _LOBES * stretch) + 1, num_inputs))
    begins = np.ceil(centers - _LOBES * stretch - 0.5).astype(np.int64)  # the first pixel whose centre lies within
    np.clip(begins, 0, num_inputs - len(window), out=begins)
    integers = _kernel(np.add.outer(begins - centers + 0.5, window) / stretch)
    integers *= (_ONE / integers.sum(axis=1))[:, None]
    np.rint(integers, out=integers)
    # Exactly _ONE in all, so that a flat area stays as it is; the weight at the centre can bear the difference.
    nearest = np.minimum(centers.astype(np.int64), num_inputs - 1) - begins
    integers[np.arange(num_outputs), nearest] += _ONE - integers.sum(axis=1)

    edges = range(0, num_outputs, _BLOCK)
    firsts = begins[::_BLOCK]
    taps = int((begins[[min(edge + _BLOCK, num_outputs) - 1 for edge in edges]] - firsts).max()) + len(window)
    firsts = np.minimum(firsts, num_inputs - taps)  # the last blocks must not read past the end
    weights = np.zeros((num_outputs, taps), dtype=np.float32)
    places = np.arange(num_outputs) * taps + begins - np.repeat(firsts, _BLOCK)[:num_outputs]
    weights.reshape(-1)[places[:, None] + window] = integers * (gain / _ONE)
    blocks = tuple(weights[edge : edge + _BLOCK] for edge in edges)
    return _Weights(num_outputs, taps, int(firsts[0]), int(firsts[-1]) + taps, tuple(firsts.tolist()), blocks)


_kept_weights = lru_cache(maxsize=512)(_made_weights)


def _kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """sinc(x) sinc(x / 3) within 3 of 0, with one sine instead of two: sin 3t = sin t (3 - 4 sin^2 t)."""
    angle = x * (np.pi / _LOBES)
    angle[angle == 0] = 1e-9
    squared = np.sin(angle)
    squared *= squared
    values: NDArray[np.float64] = squared * (3 - 4 * squared)
    values /= 3 * angle * angle
    values[np.abs(x) >= _LOBES] = 0
    return values


def _resample_columns(image: Image.Image, columns: _Weights, top: int, bottom: int) -> NDArray[np.float32]:
    """Rows [top, bottom) of the image, resampled horizontally, in quarters: float32 [bands, bottom - top, width]."""
    taps, bands = columns.taps, len(image.getbands())
    out = _scratch("narrow", (bands, bottom - top, columns.num_outputs))
    height = max(_MAX_STRIP // (image.width * bands), 1)
    chunk = _MAX_PRODUCT // (_BLOCK * taps) or 1
    for y in range(0, bottom - top, height):
        done = out[:, y : y + height]
        strip = _planes(image, columns, top + y, top + y + done.shape[1])
        for number, (first, block) in enumerate(zip(columns.firsts, columns.blocks, strict=True)):
            source = strip[..., first - columns.start : first - columns.start + taps]
            product = done[..., number * _BLOCK : (number + 1) * _BLOCK]
            for z in range(0, done.shape[1], chunk):
                np.matmul(source[:, z : z + chunk], block.T, out=product[:, z : z + chunk])
        np.rint(done, out=done)
        np.clip(done, 0, 255 * _QUARTERS, out=done)  # as Pillow does between the passes
    return out


def _planes(image: Image.Image, columns: _Weights, top: int, bottom: int) -> NDArray[np.float32]:
    """Rows [top, bottom) of the columns that are read, band by band."""
    if image.height > 2 * (bottom - top):
        image = image.crop((0, top, image.width, bottom))  # only worth its copy where most rows aren't wanted
        top, bottom = 0, bottom - top
    bands = image.getbands()
    planes = _scratch("planes", (len(bands), bottom - top, columns.stop - columns.start))
    for plane, band in zip(planes, bands, strict=True):
        data = image.tobytes("raw", band)  # a quarter of the time of split()
        pixels = np.frombuffer(data, dtype=np.uint8).reshape(image.height, image.width)
        plane[...] = pixels[top:bottom, columns.start : columns.stop]
    return planes


def _resample_rows(planes: NDArray[np.float32], rows: _Weights) -> NDArray[np.float32]:
    bands, _, width = planes.shape
    taps = rows.taps
    out = _scratch("pixels", (bands, rows.num_outputs, width))
    chunk = _MAX_PRODUCT // (_BLOCK * taps) or 1
    for number, (first, block) in enumerate(zip(rows.firsts, rows.blocks, strict=True)):
        source = planes[:, first - rows.start : first - rows.start + taps]
        done = out[:, number * _BLOCK : (number + 1) * _BLOCK]
        for x in range(0, width, chunk):
            np.matmul(block, source[..., x : x + chunk], out=done[..., x : x + chunk])
    return out


_kept = threading.local()


def _scratch(use: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Uninitialized memory, this thread's own until the next call for the same use: fresh pages cost more than the
    arithmetic done in them."""
    size = math.prod(shape)
    if size > _MAX_SCRATCH:
        return np.empty(shape, dtype=np.float32)
    memory: NDArray[np.float32] | None = getattr(_kept, use, None)
    if memory is None:
        memory = np.empty(_MAX_SCRATCH, dtype=np.float32)
        setattr(_kept, use, memory)
    return memory[:size].reshape(shape)
