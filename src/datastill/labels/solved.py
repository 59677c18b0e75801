"""Labels in closed form: those by which ridge regression on the set fits real images best (KIP's label solve)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from datastill.core.context import Context
from datastill.engines.kernels import Kernel, solved_labels
from datastill.training.regression import centered


@dataclass(frozen=True)
class Solved:
    """Least squares on a class-balanced selection of real images, once the images are done; no leaf.

    Attributes:
        kernel, ridge: of the regression.
        per_class: real images of each class that decide.
    """

    kind: ClassVar[str] = "regression"

    kernel: Kernel
    ridge: float
    per_class: int

    def during(self, context: Context) -> Tensor:
        """The classes: an objective that solves for labels takes none."""
        return context.block.y

    def final(self, context: Context) -> Tensor:
        """Targets (n, C) float32."""
        classes, block = context.task.classes, context.block
        x = context.plan.decoder.decode(context.codes, block.y).x.detach()
        generator = context.rng.generator("label-solve", block.key)
        real = context.task.real.of_classes(block.classes, self.per_class, generator).to(context.device)
        return solved_labels(self.kernel, x, real.x, centered(real.y, classes), self.ridge, real.weight).float()
