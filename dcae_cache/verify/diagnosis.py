"""Is a stored latent the one its image encodes to, and if not, what is it? Works on single latents [c, h, w].

Knows nothing of files, models or images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a stored latent may be from a fresh one on account of rounding alone.

    ``difference``: of the whole latent, relative (``relative_difference``). ``scale``: of the factor between the two.
    ``cell``: of the worst cell, relative to the mean cell.
    """

    difference: float
    scale: float
    cell: float


# The coarser of the stored and the computing dtype decides. f32c32-tiny computed in bf16 is 1.2 % away from itself in
# fp32, its scale 0.3 %; in fp16 0.15 % and 0.01 %. Another GPU sums in another order, which is no worse.
_TOLERANCES = {  # coarsest first
    "bf16": Tolerance(0.10, 0.006, 0.50),
    "fp16": Tolerance(0.03, 0.003, 0.15),
    "fp32": Tolerance(0.01, 0.002, 0.05),
}
_LEAST_RMS = 0.1  # of a latent: those of flat images are small, and must not make rounding look large


def tolerance_for(dtype: str, compute_dtype: str) -> Tolerance:
    """For latents stored as ``dtype`` ("fp32", "fp16", "bf16") of a network that computes in ``compute_dtype``."""
    return next(limits for name, limits in _TOLERANCES.items() if name in (dtype, compute_dtype))


def relative_difference(stored: Tensor, fresh: Tensor) -> float:
    """The root mean square of ``stored - fresh`` over that of ``fresh``; both [c, h, w] and scaled."""
    a, b = stored.double(), fresh.double()
    return float((a - b).norm() / _norm(b))


def agrees(stored: Tensor, fresh: Tensor, tolerance: Tolerance) -> bool:
    """Whether rounding alone explains the difference."""
    if stored.shape != fresh.shape or relative_difference(stored, fresh) > tolerance.difference:
        return False
    return abs(_scale(stored, fresh) - 1) <= tolerance.scale and _worst_cell(stored, fresh)[0] <= tolerance.cell


def diagnose(stored: Tensor, fresh: Tensor, mirrored: Callable[[], Tensor] | None, tolerance: Tolerance) -> str:
    """What a stored latent that does not agree with ``fresh`` is instead, as the end of a sentence on it.

    ``mirrored`` gives the latent of the mirrored image, None if that is not to be looked at.
    """
    if stored.shape != fresh.shape:
        return f"is of shape {list(stored.shape)}, its image's latent of {list(fresh.shape)}"
    for what, other in _others(fresh, mirrored):
        if other.shape != stored.shape:
            continue
        scale = _scale(stored, other)
        if scale > 0 and relative_difference(stored / scale, other) <= tolerance.difference:
            times = "" if abs(scale - 1) <= tolerance.scale else f" times {scale:.4g}"
            if not what and not times:
                break  # as a whole it is right: a few cells aren't
            return f"is its image's latent{what}{times}"
    difference = relative_difference(stored, fresh)
    if difference <= tolerance.difference:
        worst, row, column = _worst_cell(stored, fresh)
        return f"is damaged at row {row}, column {column}: off by {worst:.0%} of a cell"
    limit = f"{tolerance.difference:.0%}"
    return f"is not its image's latent: they differ by {difference:.0%}, and rounding by {limit} at most"


def _others(fresh: Tensor, mirrored: Callable[[], Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    """Latents that a mistake makes of the right one."""
    yield "", fresh
    yield " flipped left-right", fresh.flip(2)
    yield " flipped upside down", fresh.flip(1)
    yield " with rows and columns swapped", fresh.transpose(1, 2)
    if mirrored is not None:
        yield " of the mirrored image", mirrored()


def _scale(stored: Tensor, fresh: Tensor) -> float:
    """The factor that brings ``fresh`` nearest to ``stored``."""
    a, b = stored.double(), fresh.double()
    return 1 + float(((a - b) * b).sum() / _norm(b) ** 2)


def _worst_cell(stored: Tensor, fresh: Tensor) -> tuple[float, int, int]:
    """The largest difference of a cell, relative to the mean cell, and its row and column."""
    a, b = stored.double(), fresh.double()
    height, width = b.shape[1:]
    cells = (a - b).norm(dim=0) / (_norm(b) / (height * width) ** 0.5)
    place = int(cells.argmax())
    return float(cells.max()), place // width, place % width


def _norm(tensor: Tensor) -> Tensor:
    return torch.clamp(tensor.norm(), min=_LEAST_RMS * tensor.numel() ** 0.5)
