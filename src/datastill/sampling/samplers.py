"""Samplers of real data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datastill.core.batch import Batch
from datastill.core.context import Context

if TYPE_CHECKING:
    from datastill.data.real import RealSet


@dataclass(frozen=True)
class ClassBatches:
    """`n` images of every class of the block, without replacement inside a step, class by class.

    A class with fewer images gives all it has; objectives divide by true counts.
    """

    n: int

    def draw(self, real: RealSet, context: Context) -> Batch:
        """Images of the block's classes at this step."""
        return real.of_classes(context.block.classes, self.n, context.generator("real"))
