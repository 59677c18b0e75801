"""The likelihood-ratio attack (Carlini et al., S&P 2022, arXiv:2112.03570), off-line and on-line.

Shadow networks come from random halves of a pool; a sample's confidence phi = log(p_y / (1 - p_y)) under those that
were made without it (and, on-line, with it) is a Gaussian, and that of the target network is compared with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng

#: Shadow networks below which all samples share one variance.
OWN_VARIANCE = 64


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """phi = z_y - logsumexp of the others, (n,) double; finite for logits of any finite size."""
    z = logits.double()
    rows = torch.arange(len(y), device=z.device)
    rest = z.clone()
    rest[rows, y] = -torch.inf
    return z[rows, y] - rest.logsumexp(1)


def halves(labels: Tensor, shadows: int, seed: int = 0) -> Tensor:
    """Which samples each shadow is made from, (shadows, n) bool: every sample is in half of them, each class halved.

    Args:
        labels: classes of the pool, (n,).
        shadows: an even number: they come in pairs that complement each other.
        seed: of the draw.

    Raises:
        InputError: an odd number of shadows, or none.
    """
    if shadows < 2 or shadows % 2:
        raise InputError(
            f"Shadows come in complementary pairs, so their number must be even and at least 2, not {shadows}."
        )
    inside = torch.zeros(shadows, len(labels), dtype=torch.bool)
    for k in range(0, shadows, 2):
        for c in labels.unique().tolist():
            members = (labels == c).nonzero().flatten()
            order = torch.randperm(len(members), generator=Rng(seed).generator("halves", k, c))
            inside[k, members[order[: len(members) // 2]]] = True
        inside[k + 1] = ~inside[k]
    return inside


def lira_offline(target: Tensor, shadows: Tensor, inside: Tensor) -> Tensor:
    """How far into the distribution without the sample the target's confidence lies: its CDF, (n,).

    Args:
        target: phi of the target network, (n,).
        shadows: phi of shadow networks, (k, n).
        inside: which of them were made with which sample, (k, n) bool.
    """
    mean, std = _gaussian(shadows, ~inside)
    return torch.special.ndtr((target.double() - mean) / std)


def lira_online(target: Tensor, shadows: Tensor, inside: Tensor) -> Tensor:
    """log N(phi; with) - log N(phi; without), (n,); arguments as of `lira_offline`."""
    found = []
    for which in (inside, ~inside):
        mean, std = _gaussian(shadows, which)
        found.append(-((target.double() - mean) ** 2) / (2 * std**2) - std.log())
    return found[0] - found[1]


def _gaussian(values: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each column over the chosen rows, and standard deviation: of all columns together where rows are few."""
    values, count = values.double(), which.sum(0)
    if int(count.min()) < 2:
        raise InputError("Each sample needs two shadow networks on either side; take --shadows 4 or more.")
    zero = torch.zeros_like(values)
    mean = torch.where(which, values, zero).sum(0) / count
    squares = torch.where(which, (values - mean) ** 2, zero).sum(0)
    few = len(values) < OWN_VARIANCE
    variance = squares.sum() / (count - 1).sum() if few else squares / (count - 1)
    return mean, variance.sqrt().clamp_min(1e-12).expand_as(mean)
