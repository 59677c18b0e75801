"""Samplers of real data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.context import Context
from datastill.core.errors import InputError

if TYPE_CHECKING:
    from datastill.data.real import RealSet


@dataclass(frozen=True)
class ClassBatches:
    """`n` images of every class of the block, without replacement inside a step, class by class.

    A class with fewer images gives all it has; objectives divide by true counts.
    """

    n: int

    @property
    def per_class(self) -> int:
        """So many are drawn of every class."""
        return self.n

    def draw(self, real: RealSet, context: Context) -> Batch:
        """Images of the block's classes at this step."""
        return real.of_classes(context.block.classes, self.n, context.generator("real"))


@dataclass(frozen=True)
class ClassEpochs:
    """`n` images of every class of the block, class by class, from epochs that are reshuffled for each class.

    Step t takes the t-th batch of a class's stream: within an epoch no image comes twice, and the rest of an epoch
    that fills no batch is left out, as IDC's loader does. A class with fewer images gives all it has at every step.
    An epoch's order depends on the seed, the class and the epoch alone.

    Raises:
        InputError: `n` is below 1.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"A batch of {self.n} real images per class is empty; use at least 1.")

    @property
    def per_class(self) -> int:
        """So many are drawn of every class."""
        return self.n

    def draw(self, real: RealSet, context: Context) -> Batch:
        """Images of the block's classes at this step."""
        index = [self._of_class(real.drawable(c), c, context) for c in context.block.classes]
        return real.batch(torch.cat(index))

    def _of_class(self, members: Tensor, c: int, context: Context) -> Tensor:
        epoch, batch = divmod(context.step, max(1, len(members) // self.n))
        order = torch.randperm(len(members), generator=context.rng.generator("epoch", c, epoch))
        return members[order[batch * self.n : (batch + 1) * self.n]]
