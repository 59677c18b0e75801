"""Every real image with the same probability, each by a draw of its own: what subsampling amplifies privacy for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from datastill.core.batch import Batch
from datastill.core.context import Context

if TYPE_CHECKING:
    from datastill.data.real import RealSet


@dataclass(frozen=True)
class PoissonBatches:
    """Each image of the block's classes with probability `rate`; a batch may be empty."""

    rate: float

    def draw(self, real: RealSet, context: Context) -> Batch:
        """The images of this step, in the order of the set."""
        taken = torch.rand(len(real), generator=context.generator("poisson"), dtype=torch.double) < self.rate
        of_block = torch.isin(real.labels, torch.tensor(context.block.classes))
        return real.batch((taken & of_block).nonzero().flatten())
