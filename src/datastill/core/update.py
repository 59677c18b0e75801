"""How leaves move: torch's optimizers, one per named leaf, with a state that goes into a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.interrupt import Stopped, stop_between_steps

Schedule = Callable[[float], float]  # progress in [0, 1) -> factor of the learning rate


def cosine(progress: float) -> float:
    """(1 + cos(pi t/T)) / 2."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def load_optimizers() -> None:
    """Have torch load what its first optimizer takes, its compiler among it: a second or two.

    An exception that a signal raises inside an import may be lost in it, so a stop is raised afterwards.

    Raises:
        Stopped: by a signal.
    """
    with stop_between_steps() as stop:
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if stop.requested:
        raise Stopped


class FirstGradients:
    """Mean RMS of a leaf's first gradients, by which a rule finds its rate or tells whether one fits."""

    names = ("seen", "total")  #: of its state, which is no momentum

    def __init__(self, first: int) -> None:
        self.first, self.seen, self.total = first, 0, 0.0

    @property
    def rms(self) -> float:
        """Of those that were measured so far; 0 before there is one."""
        return self.total / max(1, self.seen)

    def add(self, grad: Tensor) -> None:
        """Measure a gradient, if it is one of the first."""
        if self.seen < self.first:
            self.seen += 1
            self.total += float(grad.double().square().mean().sqrt())

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        seen, total = torch.tensor([self.seen, self.total], dtype=torch.float64)
        return {"seen": seen, "total": total}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.seen, self.total = int(state["seen"]), float(state["total"])


class OptimizerStepper:
    """A torch optimizer that owns one leaf and is stepped by hand."""

    early = False
    lasting: Collection[str] = ()

    def __init__(
        self,
        leaf: Tensor,
        optimizer: torch.optim.Optimizer,
        lr: float,
        schedule: Schedule | None,
        maximize: bool,
    ) -> None:
        self.leaf, self.optimizer, self.lr = leaf, optimizer, lr
        self.schedule, self.maximize = schedule, maximize

    def before(self) -> None:
        """Nothing: the leaf moves after its gradient is known."""

    def after(self, grad: Tensor, progress: float) -> None:
        """One step along `grad`."""
        if self.schedule is not None:
            self.optimizer.param_groups[0]["lr"] = self.lr * self.schedule(progress)
        self.leaf.grad = -grad if self.maximize else grad
        self.optimizer.step()
        self.leaf.grad = None

    def finish(self) -> None:
        """Nothing: the leaf is where its last step left it."""

    def note(self) -> str:
        """Nothing to say."""
        return ""

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors for the leaf, by name."""
        return {
            name: torch.as_tensor(value) for name, value in self.optimizer.state[self.leaf].items() if value is not None
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            ValueError: it is of another leaf.
        """
        if any((t.shape, t.dtype) != (self.leaf.shape, self.leaf.dtype) for n, t in state.items() if n != "step"):
            raise ValueError("the optimizer's state has another shape or type than what it moves")
        if state:
            self.optimizer.state[self.leaf] = {
                name: value.to(self.leaf.device) if value.ndim else value for name, value in state.items()
            }


@dataclass(frozen=True)
class Sgd:
    """Gradient descent with momentum (no dampening, no Nesterov)."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule | None = None
    maximize: bool = False

    def bind(self, leaf: Tensor) -> OptimizerStepper:
        """The rule with its own state for one leaf."""
        optimizer = torch.optim.SGD([leaf], lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return OptimizerStepper(leaf, optimizer, self.lr, self.schedule, self.maximize)


@dataclass(frozen=True)
class Adam:
    """Adam without weight decay."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Schedule | None = None
    maximize: bool = False

    def bind(self, leaf: Tensor) -> OptimizerStepper:
        """The rule with its own state for one leaf."""
        optimizer = torch.optim.Adam([leaf], lr=self.lr, betas=self.betas, eps=self.eps)
        return OptimizerStepper(leaf, optimizer, self.lr, self.schedule, self.maximize)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    schedule: Schedule | None = None
    maximize: bool = False

    def bind(self, leaf: Tensor) -> OptimizerStepper:
        """The rule with its own state for one leaf."""
        optimizer = torch.optim.AdamW(
            [leaf], lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
        return OptimizerStepper(leaf, optimizer, self.lr, self.schedule, self.maximize)


@dataclass(frozen=True, eq=False)
class SequentialSgd:
    """SGD with momentum that one optimizer steps class after class, in its exact joint form (IDC, IDM, DREAM).

    The released loops step one momentum optimizer over the whole leaf once per class, with only that class's
    gradient: in a sweep over C classes every class moves in the C - 1 other steps too, by its decayed momentum b.
    The class at position c therefore coasts c steps before its gradient g and C - 1 - c after it:

        x -= lr b (m + ... + m^c);            b *= m^c;          g = gradient at x;    b = m b + g
        x -= lr b (1 + m + ... + m^(C-1-c));  b *= m^(C-1-c)

    It is exact where the classes' losses are independent. The scheduled rate of a class changes with its gradient.

    Attributes:
        rows: class of every row of the leaf's first axis, (n,) int64; a class's position is its rank among them.
    """

    lr: float
    momentum: float
    rows: Tensor
    schedule: Schedule | None = None
    maximize: bool = False

    def bind(self, leaf: Tensor) -> SequentialStepper:
        """The rule with its own state for one leaf.

        Raises:
            InputError: `rows` are not those of the leaf, as where blocks hold only some of the classes.
        """
        if len(self.rows) != len(leaf):
            raise InputError(
                f"Sequential momentum knows the classes of {len(self.rows)} rows and the leaf has {len(leaf)}; "
                "it goes with one block that holds all classes."
            )
        return SequentialStepper(leaf, self)


class SequentialStepper:
    """`SequentialSgd` bound to a leaf."""

    early = True
    lasting: Collection[str] = ()

    def __init__(self, leaf: Tensor, rule: SequentialSgd) -> None:
        self.leaf, self.rule = leaf, rule
        self.buffer = torch.zeros_like(leaf)
        self.factor = 1.0 if rule.schedule is None else rule.schedule(0.0)
        present, position = torch.unique(rule.rows.cpu(), return_inverse=True)
        powers = torch.tensor(rule.momentum, dtype=torch.float64) ** torch.arange(len(present))
        sums = powers.cumsum(0)  # 1 + ... + m^k
        ahead = torch.cat([torch.zeros(1, dtype=torch.float64), rule.momentum * sums[:-1]])
        rest = len(present) - 1 - position
        self._ahead, self._decay = self._per_row(ahead[position]), self._per_row(powers[position])
        self._behind, self._decay_behind = self._per_row(sums[rest]), self._per_row(powers[rest])

    def before(self) -> None:
        """The steps of the classes that come earlier in the sweep."""
        self.leaf.add_(self.buffer * self._ahead, alpha=-self.rule.lr * self.factor)
        self.buffer.mul_(self._decay)

    def after(self, grad: Tensor, progress: float) -> None:
        """The class's own step along `grad`, which was taken where `before` left it, and those of later classes."""
        if self.rule.schedule is not None:
            self.factor = self.rule.schedule(progress)
        self.buffer.mul_(self.rule.momentum).add_(grad, alpha=-1 if self.rule.maximize else 1)
        self.leaf.add_(self.buffer * self._behind, alpha=-self.rule.lr * self.factor)
        self.buffer.mul_(self._decay_behind)

    def state(self) -> dict[str, Tensor]:
        """The momentum, and the schedule's factor by which it moves on."""
        return {"momentum_buffer": self.buffer, "factor": torch.tensor(self.factor, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            self.buffer.copy_(state["momentum_buffer"])
            self.factor = float(state["factor"])

    def finish(self) -> None:
        """Nothing: the leaf is where its last step left it."""

    def note(self) -> str:
        """Nothing to say."""
        return ""

    def _per_row(self, values: Tensor) -> Tensor:
        return values.to(self.leaf.dtype).to(self.leaf.device).view(-1, *[1] * (self.leaf.ndim - 1))
