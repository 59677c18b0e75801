"""Drawing part of a labeled set so that every class keeps its share."""

from __future__ import annotations

import torch
from torch import Tensor

from datastill.core.rng import Rng


def allocate(counts: Tensor, total: int) -> Tensor:
    """How many images of each class to hold out so that `total` are held out in all.

    Proportional by largest remainder. A class of two or more images gives at least one and keeps at
    least one; a smaller class gives none. `total` moves to the nearest number that allows this.

    Args:
        counts: images per class, (C,) int64.
        total: how many to hold out.

    Returns:
        (C,) int64.
    """
    low = (counts >= 2).long()
    high = (counts - 1).clamp(min=0)
    total = min(max(total, int(low.sum())), int(high.sum()))
    quota = counts.double() * (total / max(1, int(counts.sum())))
    given = torch.minimum(torch.maximum(quota.floor().long(), low), high)
    while (missing := total - int(given.sum())) != 0:
        step = 1 if missing > 0 else -1
        room = (given < high) if step > 0 else (given > low)
        # the class furthest from its share gives way first; ties go to the earlier class
        gap = torch.where(room, step * (quota - given), -torch.inf)
        chosen = gap.argsort(descending=True, stable=True)[: min(abs(missing), int(room.sum()))]
        given[chosen] += step
    return given


def hold_out(labels: Tensor, classes: int, total: int, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Positions that are kept and positions that are held out, each in ascending order.

    Args:
        labels: class positions, (n,) int64.
        classes: C.
        total: how many to hold out, see `allocate`.
        seed: of the draw; each class has a draw of its own.
        purpose: separates this draw from others with the same seed.
    """
    given = allocate(torch.bincount(labels, minlength=classes), total)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for c, members in enumerate(members_by_class(labels, classes)):
        generator = Rng(seed).generator(purpose, c)
        mask[members[torch.randperm(len(members), generator=generator)[: given[c]]]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


def members_by_class(labels: Tensor, classes: int) -> tuple[Tensor, ...]:
    """Positions of each class in ascending order, C tensors of int64."""
    order = labels.argsort(stable=True)
    return torch.split(order, torch.bincount(labels, minlength=classes).tolist())
