"""The gradient of a loss at the end of N student steps, each with a step size of its own (DD: arXiv:1811.10959).

theta_{i+1} = theta_i - a_i g_i;  with lambda = dL/dtheta_{i+1}, for i = N-1 .. 0:

    dL/da_i  = - <g_i, lambda>
    dL/dX, dL/dY -= a_i d<g_i, lambda>/d(X, Y)             lambda held constant
    lambda  -= a_i d<g_i, lambda>/dtheta_i

The recursion is that of `recursion.py`, with another gradient at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.engines.hypergradient.recursion import slopes
from datastill.engines.hypergradient.student import Student

#: From theta_N (P,) to the loss there, 0-dim, and its gradient (P,).
Terminal = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class TerminalGradients:
    """The loss at theta_N and its gradients, all detached.

    Attributes:
        loss: 0-dim.
        x: dL/dX, (n, c, h, w).
        y: dL/dY, (n, C), or None for class positions.
        sizes: dL/da, (N,); zero for steps before the last ones.
    """

    loss: Tensor
    x: Tensor
    y: Tensor | None
    sizes: Tensor


def adjoint_of_loss(
    student: Student, theta0: Tensor, sizes: Tensor, terminal: Terminal, *, last: int | None = None
) -> TerminalGradients:
    """Gradients in the memory of one student step and N + 1 vectors of weights.

    Args:
        student: with its plan of N steps, without momentum and weight decay.
        theta0: where it starts, (P,).
        sizes: a, (N,).
        terminal: the loss at the end.
        last: go through the last steps alone; None is all, which is exact.

    Raises:
        InputError: the sizes are not those of the steps, or the student has momentum or weight decay.
    """
    steps, sizes = student.plan.steps, sizes.detach()
    if sizes.shape != (len(steps),):
        raise InputError(f"There are {len(steps)} student steps and step sizes of shape {tuple(sizes.shape)}.")
    if student.momentum or student.weight_decay:
        raise InputError("Learned step sizes go with a student without momentum and weight decay.")
    first = 0 if last is None else max(0, len(steps) - last)
    theta, path = theta0.detach(), []
    for step, size in zip(steps, sizes, strict=True):
        path.append(theta)
        theta = theta - size * student.gradient(theta, step, student.x, student.y)
    loss, lam = terminal(theta)
    x, slope = torch.zeros_like(student.x), torch.zeros_like(sizes)
    y = torch.zeros_like(student.y) if student.soft else None
    for i in reversed(range(first, len(steps))):
        found = slopes(student, steps[i], path[i], lam, curved=True, expected=None)
        index = steps[i].index.to(x.device)
        slope[i] = -found.s
        x.index_add_(0, index, -sizes[i] * found.x)
        if y is not None and found.y is not None:
            y.index_add_(0, index, -sizes[i] * found.y)
        lam = lam - sizes[i] * found.theta
    return TerminalGradients(loss.detach(), x, y, slope)
