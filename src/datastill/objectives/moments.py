"""Statistics of a class's features, and distances between those of two sets of images.

"means" are those of DM; "spreads" are means and standard deviations; "cf" are characteristic functions at some
frequencies (NCFM: Wang et al., CVPR 2025, arXiv:2502.20653). A statistic is a row for every class, so the one of the
real side may be taken once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.context import class_means

Moment = Literal["means", "spreads", "cf"]

#: Below this an amplitude has no phase, and a spread no gradient that is finite.
_TINY = 1e-12


@dataclass(frozen=True)
class Reference:
    """The real side of a match.

    Attributes:
        values: statistics of each class, (C, k).
        variance: of each feature within its class, the mean over classes, (d,), by which squared differences are
            divided; None leaves them as they are, and they are summed over features instead of averaged.
        t: frequencies of characteristic functions, (F, d), or None.
    """

    values: Tensor
    variance: Tensor | None = None
    t: Tensor | None = None


def statistic(
    moment: Moment, features: Tensor, y: Tensor, classes: int, weight: Tensor | None = None, t: Tensor | None = None
) -> Tensor:
    """Of each class, (C, k): d means; d means and d standard deviations; F real parts and F imaginary ones.

    Args:
        moment: which.
        features: (n, d).
        y: class positions (n,).
        classes: C; rows of absent ones mean nothing.
        weight: of images, (n,), or None.
        t: frequencies (F, d) of "cf", which takes features at unit length, as released:
            Phi_c(t) = mean_n exp(i t'f_n / |f_n|).
    """
    if moment == "cf":
        assert t is not None, "characteristic functions need frequencies"
        phase = F.normalize(features, dim=1) @ t.T
        return class_means(torch.cat([phase.cos(), phase.sin()], dim=1), y, classes, weight)
    means = class_means(features, y, classes, weight)
    if moment == "means":
        return means
    squares = class_means((features - means[y]).square(), y, classes, weight)
    return torch.cat([means, (squares + _TINY).sqrt()], dim=1)


def distance(moment: Moment, real: Reference, synthetic: Tensor, group: Tensor) -> Tensor:
    """Of the classes in `group` (g,), (g,): a squared distance of means and spreads, a distance of "cf"."""
    first, second = real.values[group], synthetic[group]
    if moment == "cf":
        return characteristic_distance(first, second)
    squares = (first - second).square()
    if real.variance is None:
        return squares.sum(dim=1)
    return (squares.view(len(group), -1, len(real.variance)) / real.variance).mean(dim=(1, 2))


def characteristic_distance(real: Tensor, synthetic: Tensor, amplitude: float = 0.5) -> Tensor:
    """Distance of characteristic functions (C, 2 F), the mean over frequencies, (C,).

    sqrt( a (|P| - |Q|)^2 + (1 - a) 2 |P| |Q| (1 - cos(arg P - arg Q)) ), where |P| |Q| cos(arg P - arg Q) is the
    product <P, Q> of vectors in the plane.
    """
    a, b = (side.view(len(side), 2, -1) for side in (real, synthetic))
    first, second = ((side.square().sum(1) + _TINY).sqrt() for side in (a, b))
    phase = (first * second - (a * b).sum(1)).clamp_min(0)
    return (amplitude * (first - second).square() + 2 * (1 - amplitude) * phase + _TINY).sqrt().mean(1)


def within_variance(features: Tensor, y: Tensor, classes: int, weight: Tensor | None = None) -> Tensor:
    """Variance of each feature within its class, the mean over classes, (d,); features that do not vary have 1e-6."""
    means = class_means(features, y, classes, weight)
    present = torch.bincount(y, minlength=classes) > 0
    squares = class_means((features - means[y]).square(), y, classes, weight)
    return squares[present].mean(0).clamp_min(1e-6)
