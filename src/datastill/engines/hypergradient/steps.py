"""The random part of N student steps, drawn ahead, so that every engine replays the same steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.plan import Augment
from datastill.core.rng import Rng


@dataclass(frozen=True, eq=False)
class InnerStep:
    """One student step.

    Attributes:
        index: positions in the synthetic set, (b,) int64.
        record: what the augmentation drew, one row per position, or None.
        seed: of whatever the network itself draws (dropout).
    """

    index: Tensor
    record: Any
    seed: int


@dataclass(frozen=True, eq=False)
class InnerPlan:
    """N student steps on a synthetic set of `n` images."""

    n: int
    steps: tuple[InnerStep, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def visits(self) -> Tensor:
        """How often each image is used, (n,); those never used get no gradient."""
        none = torch.zeros(0, dtype=torch.int64)
        return torch.bincount(torch.cat([none, *(step.index for step in self.steps)]), minlength=self.n)


def batches(n: int, batch: int, rng: Rng) -> Iterator[Tensor]:
    """Endless positions (b,) int64: a random permutation in chunks, taken from its end, then the next permutation.

    So all images are used equally often, and the short chunk of a size that `batch` does not divide comes first,
    as in the released code of MTT (Cazenavette et al., CVPR 2022, arXiv:2203.11932).
    """
    turn = 0
    while True:
        chunks = list(torch.randperm(n, generator=rng.generator("order", turn)).split(batch))
        while chunks:
            yield chunks.pop()
        turn += 1


def draw_plan(
    n: int, steps: int, batch: int | None, augment: Augment | None, shape: tuple[int, int, int], rng: Rng
) -> InnerPlan:
    """Draw N student steps.

    Args:
        n: size of the synthetic set.
        steps: N, not negative.
        batch: images per step; None, or more than there are, is the whole set.
        augment: one operation per step with parameters per image, or None.
        shape: channels, height and width of the images.
        rng: the family of the plan's generators.

    Raises:
        InputError: a number out of range.
    """
    if n < 1 or steps < 0 or (batch is not None and batch < 1):
        raise InputError(
            f"Student steps need at least one image, a batch of at least one and a number of steps that is not "
            f"negative, not {n} images, a batch of {batch} and {steps} steps."
        )
    order = batches(n, min(n, batch or n), rng)
    drawn = []
    for i in range(steps):
        index = next(order)
        record = None
        if augment is not None:
            record = augment.draw(len(index), shape, rng.generator("augment", i), one_op=True)
        drawn.append(InnerStep(index, record, rng.derive("dropout", i)))
    return InnerPlan(n, tuple(drawn))
