"""The real images that look most like the synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Real images of a class that are searched; of larger classes so many, evenly spaced.
SEARCHED = 2000
#: Share of the usual distance between real images below which one counts as a copy.
COPY = 0.1


@dataclass(frozen=True)
class Neighbors:
    """For each synthetic image the nearest real one of its class; -1 where the class has none.

    Attributes:
        index: positions in the real set, (n,).
        distance: root mean squared difference of the pixels, (n,); NaN where there is none.
    """

    index: Tensor
    distance: Tensor


def nearest_real(pixels: Tensor, labels: Tensor, real: RealSet, limit: int = SEARCHED) -> Neighbors:
    """Nearest real images by the L2 distance of pixels, within each class.

    Args:
        pixels: (n, c, h, w) in [0, 1].
        labels: class positions (n,).
        limit: real images of each class that are searched.
    """
    index = torch.full((len(labels),), -1, dtype=torch.int64)
    distance = torch.full((len(labels),), float("nan"))
    for c in labels.unique().tolist():
        members = real.class_index(int(c))
        if not len(members):
            continue
        if len(members) > limit:
            members = members[torch.linspace(0, len(members) - 1, limit).round().long()]
        rows = (labels == c).nonzero().flatten()
        best, where = _search(pixels[rows].flatten(1).float(), members, real)
        index[rows], distance[rows] = members[where], best / pixels[0].numel() ** 0.5
    return Neighbors(index, distance)


def _search(wanted: Tensor, members: Tensor, real: RealSet, values: int = 2**24) -> tuple[Tensor, Tensor]:
    """Distance to and place of the nearest of `members`, a few megabytes of them at a time."""
    best = torch.full((len(wanted),), float("inf"))
    where = torch.zeros(len(wanted), dtype=torch.int64)
    step = max(1, values // wanted.shape[1])
    for start in range(0, len(members), step):
        part = real.pixels(members[start : start + step]).flatten(1)
        near, place = torch.cdist(wanted, part, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        closer = near < best
        best = torch.where(closer, near, best)
        where = torch.where(closer, place + start, where)
    return best, where
