"""How leaves move: torch's optimisers, one per named leaf, with a state that goes into a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Schedule = Callable[[float], float]  # progress in [0, 1) -> factor of the learning rate


def cosine(progress: float) -> float:
    """(1 + cos(pi t/T)) / 2."""
    return 0.5 * (1 + math.cos(math.pi * progress))


class OptimiserStepper:
    """A torch optimiser that owns one leaf and is stepped by hand."""

    early = False

    def __init__(
        self,
        leaf: Tensor,
        optimiser: torch.optim.Optimizer,
        lr: float,
        schedule: Schedule | None,
        maximise: bool,
    ) -> None:
        self.leaf, self.optimiser, self.lr = leaf, optimiser, lr
        self.schedule, self.maximise = schedule, maximise

    def before(self) -> None:
        """Nothing: the leaf moves after its gradient is known."""

    def after(self, grad: Tensor, progress: float) -> None:
        """One step along `grad`."""
        if self.schedule is not None:
            self.optimiser.param_groups[0]["lr"] = self.lr * self.schedule(progress)
        self.leaf.grad = -grad if self.maximise else grad
        self.optimiser.step()
        self.leaf.grad = None

    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors for the leaf, by name."""
        return {
            name: torch.as_tensor(value) for name, value in self.optimiser.state[self.leaf].items() if value is not None
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            self.optimiser.state[self.leaf] = {
                name: value.to(self.leaf.device) if value.ndim else value for name, value in state.items()
            }


@dataclass(frozen=True)
class Sgd:
    """Gradient descent with momentum (no dampening, no Nesterov)."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule | None = None
    maximise: bool = False

    def bind(self, leaf: Tensor) -> OptimiserStepper:
        """The rule with its own state for one leaf."""
        optimiser = torch.optim.SGD([leaf], lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return OptimiserStepper(leaf, optimiser, self.lr, self.schedule, self.maximise)


@dataclass(frozen=True)
class Adam:
    """Adam without weight decay."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Schedule | None = None
    maximise: bool = False

    def bind(self, leaf: Tensor) -> OptimiserStepper:
        """The rule with its own state for one leaf."""
        optimiser = torch.optim.Adam([leaf], lr=self.lr, betas=self.betas, eps=self.eps)
        return OptimiserStepper(leaf, optimiser, self.lr, self.schedule, self.maximise)
