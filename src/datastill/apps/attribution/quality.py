"""How good attributions are: pixels removed or shown by their rank, and how undecided a baseline leaves the network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


def curve(
    network: Network, x: Tensor, target: Tensor, attribution: Tensor, fill: Tensor, points: int = 10, *, insert: bool
) -> Tensor:
    """Mean probability of the target with the highest pixels replaced (deletion) or alone shown, (points + 1,).

    Args:
        network: images to logits.
        x: images (n, c, h, w).
        target: classes (n,).
        attribution: like `x`; a pixel's rank is by its sum over channels.
        fill: what stands in the place of a pixel, (n or 1, c, h, w): the same for all attributions that are compared.
        points: shares of the pixels beside none.
        insert: show the highest pixels on `fill` instead of replacing them.
    """
    n, count = len(x), x[0, 0].numel()
    rank = attribution.sum(1).flatten(1).argsort(dim=1, descending=True).argsort(dim=1)  # 0 is the highest
    found = []
    with torch.no_grad():
        for k in range(points + 1):
            highest = (rank < round(count * k / points)).view(n, 1, *x.shape[2:])
            shown = highest if insert else ~highest
            mixed = torch.where(shown, x, fill.expand_as(x))
            found.append(network(mixed).softmax(1).gather(1, target[:, None]).mean())
    return torch.stack(found)


def area(values: Tensor) -> float:
    """Under a curve over [0, 1], by trapezoids."""
    return float(torch.trapezoid(values.double(), dx=1 / (len(values) - 1)))


def undecided(network: Network, baseline: Tensor) -> float:
    """Mean entropy of the network at baselines (n, c, h, w) over that of guessing: 1 where it knows no class."""
    with torch.no_grad():
        logs = network(baseline).log_softmax(1).double()
    entropy = -(logs.exp() * logs).sum(1)
    return float((entropy / torch.tensor(float(logs.shape[1]), dtype=torch.float64).log()).mean())
