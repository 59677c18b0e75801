"""How near an image is to another, both as pixels in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

#: Side of the window of SSIM and the constants of its denominators, for a range of 1 (Wang et al., 2004).
_WINDOW, _C1, _C2 = 7, 0.01**2, 0.03**2


def mse(a: Tensor, b: Tensor) -> float:
    """Mean squared difference."""
    return float((a.double() - b.double()).square().mean())


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, for a peak of 1; infinite where nothing differs."""
    return float(-10 * torch.log10(torch.tensor(mse(a, b), dtype=torch.float64)))


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of images (c, h, w): the mean over channels and whole 7 x 7 windows of equal weights.

    Variances are unbiased, as scikit-image has them. Images of less than 7 pixels take the largest odd window.
    """
    side = min(_WINDOW, *(n - 1 + n % 2 for n in a.shape[1:]))
    count = side * side
    a, b = a.double()[:, None], b.double()[:, None]

    def mean(x: Tensor) -> Tensor:
        return avg_pool2d(x, side, stride=1)

    at, bt = mean(a), mean(b)
    unbiased = count / max(1, count - 1)
    va, vb = unbiased * (mean(a * a) - at * at), unbiased * (mean(b * b) - bt * bt)
    vab = unbiased * (mean(a * b) - at * bt)
    found = (2 * at * bt + _C1) * (2 * vab + _C2) / ((at * at + bt * bt + _C1) * (va + vb + _C2))
    return float(found.mean())
