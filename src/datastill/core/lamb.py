"""LAMB (You et al., ICLR 2020, arXiv:1904.00962): Adam's direction, as long as a part of what it moves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.update import Schedule


@dataclass(frozen=True)
class Lamb:
    """x -= lr (||x|| / ||u||) u with Adam's direction u, and one ratio for the whole leaf; no weight decay.

    The ratio is 1 where one of the norms is 0.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    schedule: Schedule | None = None

    def bind(self, leaf: Tensor) -> LambStepper:
        """The rule with its own state for one leaf."""
        return LambStepper(leaf, self)


class LambStepper:
    """`Lamb` bound to a leaf."""

    early = False
    lasting: Collection[str] = ()

    def __init__(self, leaf: Tensor, rule: Lamb) -> None:
        self.leaf, self.rule = leaf, rule
        self.mean, self.square, self.taken = torch.zeros_like(leaf), torch.zeros_like(leaf), 0

    def before(self) -> None:
        """Nothing: the leaf moves after its gradient is known."""

    def after(self, grad: Tensor, progress: float) -> None:
        """One step along `grad`."""
        (b1, b2), rule = self.rule.betas, self.rule
        self.taken += 1
        self.mean.mul_(b1).add_(grad, alpha=1 - b1)
        self.square.mul_(b2).addcmul_(grad, grad, value=1 - b2)
        direction = self.mean / (1 - b1**self.taken)
        direction = direction / ((self.square / (1 - b2**self.taken)).sqrt() + rule.eps)
        long, step = self.leaf.norm(), direction.norm()
        ratio = torch.where((long > 0) & (step > 0), long / step, torch.ones_like(long))
        lr = rule.lr if rule.schedule is None else rule.lr * rule.schedule(progress)
        self.leaf.sub_(lr * ratio * direction)

    def finish(self) -> None:
        """Nothing: the leaf is where its last step left it."""

    def note(self) -> str:
        """Nothing to say."""
        return ""

    def state(self) -> dict[str, Tensor]:
        """Both moments, and the number of steps."""
        return {"exp_avg": self.mean, "exp_avg_sq": self.square, "step": torch.tensor(self.taken)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; an empty one changes nothing."""
        if state:
            self.mean.copy_(state["exp_avg"])
            self.square.copy_(state["exp_avg_sq"])
            self.taken = int(state["step"])
