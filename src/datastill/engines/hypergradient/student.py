"""One student step on the synthetic set: its inner loss and that loss's gradient, whole or in chunks.

theta_{i+1} = theta_i - alpha b_{i+1},   b_{i+1} = m b_i + g_i + w theta_i,   b_0 = 0
g_i = nu d/dtheta loss(A_i(X[b_i]), Y[b_i]; theta_i)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.plan import Augment
from datastill.core.rng import isolated
from datastill.engines.hypergradient.steps import InnerPlan, InnerStep

#: (theta (P,), images (b, c, h, w)) -> logits (b, C); see `engines.flat.FlatModel`.
Model = Callable[[Tensor, Tensor], Tensor]

#: (logits (b, C), labels (b,) or (b, C)) -> mean over the batch, 0-dim.
LossFn = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy with class positions (b,) int64 or probabilities (b, C), differentiable in the latter."""
    if not y.is_floating_point():
        return F.cross_entropy(logits, y)
    return -(y * logits.log_softmax(1)).sum(1).mean()


def cross_entropy_of_logits(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy with labels that are logits themselves, (b, C): DATM's learned labels."""
    return cross_entropy(logits, y.softmax(1))


class StudentOptions(TypedDict, total=False):
    """What all engines take by name; see `Student`."""

    momentum: float
    weight_decay: float
    scale: float
    loss_fn: LossFn | None
    augment: Augment | None
    chunk: int | None
    label_model: Model | None
    blocks: tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Student:
    """How the student learns.

    Attributes:
        model: the network as a function of flat weights.
        x: synthetic images before augmentation, (n, c, h, w).
        y: class positions (n,) int64, or whatever `loss_fn` takes, (n, C) float.
        momentum, weight_decay: m and w of its SGD.
        scale: nu, a factor of the inner loss.
        loss_fn: a mean over the batch; None is `cross_entropy`.
        augment: replays the plan's records; may be None when there are none.
        chunk: images per pass, or None for whole batches, as networks that couple samples need. The sums are the
            same up to rounding; in float32 that can put a ReLU on the other side of its kink, and then second
            derivatives differ by more (1e-4 to 4e-3 of dL/dX on a ConvNet of width 128, float64 agrees to 1e-15).
        label_model: what labels pass before `loss_fn`, as a function of the same flat weights: a text tower. None
            leaves them as they are.
        blocks: parts of theta with a learning rate of their own, in order; alpha then has one for each of them. Empty
            is one rate for all.

    Raises:
        InputError: images, labels and plan do not belong together, or a number is out of range.
    """

    model: Model
    x: Tensor
    y: Tensor
    plan: InnerPlan
    momentum: float = 0.0
    weight_decay: float = 0.0
    scale: float = 1.0
    loss_fn: LossFn | None = None
    augment: Augment | None = None
    chunk: int | None = None
    label_model: Model | None = None
    blocks: tuple[slice, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == self.plan.n:
            raise InputError(f"The plan is for {self.plan.n} images; there are {len(self.x)} and {len(self.y)} labels.")
        if self.augment is None and any(step.record is not None for step in self.plan.steps):
            raise InputError("The plan has augmentation records, but no augmentation was given to apply them.")
        if self.momentum < 0 or self.weight_decay < 0 or (self.chunk is not None and self.chunk < 1):
            raise InputError("A student needs momentum and weight decay >= 0 and chunks of at least one image.")

    @property
    def soft(self) -> bool:
        """Whether labels are numbers that have a gradient."""
        return self.y.is_floating_point()

    def pieces(self, step: InnerStep) -> Iterator[slice]:
        """Rows of the step's batch that go through the network together, of nearly equal size."""
        b = len(step.index)
        count = 1 if self.chunk is None else -(-b // self.chunk)
        size = -(-b // count)
        for start in range(0, b, size):
            yield slice(start, min(b, start + size))

    def loss(
        self, theta: Tensor, step: InnerStep, rows: slice, x: Tensor, y: Tensor, model: Model | None = None
    ) -> Tensor:
        """What rows of the batch, images x and labels y, contribute to nu times its mean loss, 0-dim.

        `model` may stand in for the student's own.
        """
        b = len(step.index)
        if step.record is not None and self.augment is not None:
            whole = rows.stop - rows.start == b
            x = self.augment.apply(x, step.record, None if whole else torch.arange(rows.start, rows.stop))
        loss_fn = self.loss_fn or cross_entropy
        logits = (model or self.model)(theta, x)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.label_model is not None:
            y = self.label_model(theta, y)
        return loss_fn(logits, y) * (self.scale * (rows.stop - rows.start) / b)

    def gradient(self, theta: Tensor, step: InnerStep, x: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
        """g at theta (P,) on the step's batch, (P,), for all images x and labels y.

        With `create_graph` it is differentiable in theta, x and y.
        """
        index = step.index.to(x.device)
        total: Tensor | None = None
        with torch.enable_grad(), isolated(step.seed):
            leaf = theta if create_graph else theta.detach().requires_grad_()
            images, labels = x.index_select(0, index), y.index_select(0, index)
            for rows in self.pieces(step):
                loss = self.loss(leaf, step, rows, images[rows], labels[rows])
                (g,) = torch.autograd.grad(loss, leaf, create_graph=create_graph)
                total = g if total is None else total + g
        assert total is not None
        return total

    def rates(self, alpha: Tensor, theta: Tensor) -> Tensor:
        """alpha as it multiplies a vector like theta (P,): 0-dim, or (P,) where blocks have rates of their own.

        Raises:
            InputError: there is not one rate for each block.
        """
        if not self.blocks:
            return alpha.reshape(())
        if alpha.shape != (len(self.blocks),):
            raise InputError(f"There are {len(self.blocks)} parts of the weights and rates of {list(alpha.shape)}.")
        whole = torch.zeros_like(theta)
        for rate, block in zip(alpha, self.blocks, strict=True):
            mask = torch.zeros_like(theta)
            mask[block] = 1
            whole = whole + rate * mask
        return whole

    def by_block(self, values: Tensor) -> Tensor:
        """Sums of a vector like theta (P,) over the blocks, (K,)."""
        return torch.stack([values[block].sum() for block in self.blocks])

    def advance(self, theta: Tensor, b: Tensor | None, g: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """theta_{i+1} and b_{i+1} from theta_i, b_i (None is 0) and g_i, all (P,)."""
        step = g if not self.weight_decay else g + self.weight_decay * theta
        b = step if b is None or not self.momentum else self.momentum * b + step
        return theta - alpha * b, b
