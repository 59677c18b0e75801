"""A batch of real samples: images, labels, where they came from, and what they weigh."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Real samples as an objective sees them.

    Attributes:
        x: images in the real set's Space, (n, c, h, w) float.
        y: class positions 0..C-1, (n,) int64.
        index: positions in the real set, (n,) int64.
        weight: weight per sample, (n,) float, or None, which is bit-identical to no weights at all.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return replace(self, x=self.x.to(device), y=self.y.to(device), index=self.index.to(device), weight=weight)

    def of(self, positions: Tensor) -> Batch:
        """The samples at `positions` of this batch, an integer or boolean tensor."""
        weight = None if self.weight is None else self.weight[positions]
        return Batch(self.x[positions], self.y[positions], self.index[positions], weight)
