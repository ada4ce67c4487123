"""SSIM with both of its usual windows, each applied along one side and then along the other.

Sums over the uniform window are integers, and exact; those over the Gaussian one are in float64, since variances are
small differences of large numbers there. Strips of one channel are small enough to stay in a core's cache. Knows
nothing of batches that don't fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

LEVELS = 255.0
WINDOW = 11  # side of the Gaussian one, the larger of the two
_SIDE = 7  # of the uniform one
_SIGMA = 1.5
_C1, _C2 = (0.01 * LEVELS) ** 2, (0.03 * LEVELS) ** 2
_STRIP_PIXELS = 2**17

_Sum = Callable[[Tensor, Tensor], Tensor]


def ssim_gaussian(ours: Tensor, target: Tensor) -> Tensor:
    """SSIM [N], float64, of images uint8 [N, C, H, W] at least WINDOW wide and high, as torchmetrics has it: an 11x11
    Gaussian window of sigma 1.5 (Wang et al. 2004) around every pixel, images being mirrored at their edges."""
    return _mean(_gaussian_sum, WINDOW, _mirrored_edges(ours), _mirrored_edges(target))


def ssim_uniform(ours: Tensor, target: Tensor) -> Tensor:
    """The same with a 7x7 uniform window, wholly inside the image, and sample covariances: the default of
    ``skimage.metrics.structural_similarity``."""
    return _mean(_uniform_sum, _SIDE, ours, target)


def _mirrored_edges(images: Tensor) -> Tensor:
    """With half a window more on all sides; the outermost pixels themselves are not repeated."""
    for dim in (-2, -1):
        last = images.shape[dim] - 1
        places = torch.arange(-(WINDOW // 2), last + WINDOW // 2 + 1, device=images.device).abs()
        images = images.index_select(dim, torch.where(places > last, 2 * last - places, places))
    return images


def _mean(windows_of: _Sum, side: int, ours: Tensor, target: Tensor) -> Tensor:
    """The mean over all windows of each image. On a CPU strip by strip, which its caches hold; elsewhere at once."""
    height, width = ours.shape[2:]
    count = ours.shape[1] * (height - side + 1) * (width - side + 1)
    if ours.device.type != "cpu":
        return windows_of(ours, target).sum(dim=1) / count
    strips = list(_strips(height, width, side))
    sums = [
        math.fsum(windows_of(a[strip], b[strip]).item() for a, b in zip(image, aim, strict=True) for strip in strips)
        for image, aim in zip(ours, target, strict=True)
    ]
    return torch.tensor(sums, dtype=torch.float64) / count


def _strips(height: int, width: int, side: int) -> Iterator[slice]:
    """Rows that hold each window once."""
    tops, step = height - side + 1, max(side, _STRIP_PIXELS // width)
    for top in range(0, tops, step):
        yield slice(top, min(top + step, tops) + side - 1)


def _uniform_sum(ours: Tensor, target: Tensor) -> Tensor:
    """The sum of SSIM over all windows of each channel, uint8 [..., H, W] -> [...]. All integers fit in 32 bits."""
    n = _SIDE**2
    a, b = ours.int(), target.int()
    sum_a, sum_b, squares, products = map(_box, (a, b, a * a + b * b, a * b))
    both, each = sum_a * sum_b, sum_a * sum_a + sum_b * sum_b
    # Both sides of the fraction times n^2 and n (n - 1), whose quotients are the means and the sample covariances.
    alike = (2 * both).double().add_(_C1 * n**2)
    alike *= (2 * (n * products - both)).double().add_(_C2 * n * (n - 1))
    whole = each.double().add_(_C1 * n**2)
    whole *= (n * squares - each).double().add_(_C2 * n * (n - 1))
    return alike.div_(whole).sum(dim=(-2, -1))


def _box(values: Tensor) -> Tensor:
    """Sums over every 7x7 window, from those over 2 and 4 values."""
    for dim in (-2, -1):
        size = values.shape[dim]
        pairs = values.narrow(dim, 0, size - 1) + values.narrow(dim, 1, size - 1)
        sevens = pairs.narrow(dim, 0, size - 6) + pairs.narrow(dim, 2, size - 6)
        sevens += pairs.narrow(dim, 4, size - 6)
        sevens += values.narrow(dim, 6, size - 6)
        values = sevens
    return values


def _gaussian_sum(ours: Tensor, target: Tensor) -> Tensor:
    """As ``_uniform_sum``, with the Gaussian window."""
    a, b = ours.double(), target.double()
    squares, products = (a * a).addcmul_(b, b), a * b
    mean_a, mean_b, squares, products = map(_blur, (a, b, squares, products))
    both, each = mean_a * mean_b, (mean_a * mean_a).addcmul_(mean_b, mean_b)
    alike = products.sub_(both).mul_(2).add_(_C2)
    alike *= both.mul_(2).add_(_C1)
    whole = squares.sub_(each).clamp_(min=0).add_(_C2)
    whole *= each.add_(_C1)
    return alike.div_(whole).sum(dim=(-2, -1))


def _blur(values: Tensor) -> Tensor:
    """Means over every 11x11 window, weighted. Of two values at the same distance the weight is the same."""
    middle, *weights = _weights()
    for dim in (-2, -1):
        size, centre = values.shape[dim] - WINDOW + 1, WINDOW // 2
        blurred = values.narrow(dim, centre, size) * middle
        for distance, weight in enumerate(weights, start=1):
            pair = values.narrow(dim, centre - distance, size) + values.narrow(dim, centre + distance, size)
            blurred.add_(pair, alpha=weight)
        values = blurred
    return values


def _weights() -> list[float]:
    """Of the window along one side, by the distance from its centre; those of the whole window sum to 1."""
    falling = [math.exp(-((distance / _SIGMA) ** 2) / 2) for distance in range(WINDOW // 2 + 1)]
    total = falling[0] + 2 * math.fsum(falling[1:])
    return [value / total for value in falling]
