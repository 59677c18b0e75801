"""The hyper-gradient by recursion: dL/dtheta_i from dL/dtheta_{i+1}, with the graph of one student step at a time.

With lambda = dL/dtheta_{i+1} and kappa = sum_{j>i} m^{j-i-1} dL/dtheta_j, for i = N-1 .. 0:

    lambda += beta_k 2 (theta_{i+1} - theta*_k) / D_k          for every match at step i+1
    kappa   = m kappa + lambda
    dL/dalpha -= <g_i + w theta_i, kappa>
    dL/dX, dL/dY -= alpha d<g_i, kappa>/d(X, Y)                kappa held constant
    lambda -= alpha (d<g_i, kappa>/dtheta_i + w kappa)

A first pass takes the N steps without graphs and keeps theta_0 .. theta_N, N + 1 vectors of P numbers. `adjoint` is
exact. `frozen_path` leaves out d<g_i, kappa>/dtheta_i, which is what TESLA computes (Cui et al., ICML 2023,
arXiv:2211.10586): for more than one step it is not the gradient of the loss, which the paper takes it to be.
`truncated` stops after the last k steps (an option of AST).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.engines.hypergradient.convolution import FastDoubleBackward
from datastill.engines.hypergradient.match import MatchTerm, check_terms, distance_gradient, total_distance
from datastill.engines.hypergradient.result import HyperGradients
from datastill.engines.hypergradient.steps import InnerPlan, InnerStep
from datastill.engines.hypergradient.student import Model, Student, StudentOptions


def adjoint(
    model: Model,
    theta0: Tensor,
    x: Tensor,
    y: Tensor,
    alpha: Tensor,
    plan: InnerPlan,
    terms: Sequence[MatchTerm],
    *,
    check: bool = False,
    **options: Unpack[StudentOptions],
) -> HyperGradients:
    """Exact gradients in the memory of one student step and N + 1 vectors of weights.

    Args:
        model: the network as a function of flat weights, see `engines.flat.FlatModel`.
        theta0: where the student starts, (P,).
        x: synthetic images before augmentation, (n, c, h, w).
        y: class positions (n,) int64, or probabilities (n, C); with a `loss_fn` of its own, what that takes.
        alpha: the student's learning rate, 0-dim or (1,); with `blocks` one for each, (K,).
        plan: the N steps.
        terms: what the student is matched with, and where.
        check: assert that the second pass sees the inner gradients of the first (dropout and augmentation replayed).
        options: `momentum`, `weight_decay`, `scale`, `loss_fn`, `augment`, `chunk`, `label_model`, `blocks`; see
            `Student`.

    Raises:
        InputError: arguments that do not belong together.
    """
    return _recursion(Student(model, x.detach(), y.detach(), plan, **options), theta0, alpha, terms, check=check)


def frozen_path(
    model: Model,
    theta0: Tensor,
    x: Tensor,
    y: Tensor,
    alpha: Tensor,
    plan: InnerPlan,
    terms: Sequence[MatchTerm],
    *,
    reference_half: bool = False,
    **options: Unpack[StudentOptions],
) -> HyperGradients:
    """The gradient of an unroll in which every g_i is taken at a theta_i that is held constant.

    `reference_half` halves the gradient of the images, as TESLA's released script does. Arguments as for `adjoint`.
    """
    found = _recursion(Student(model, x.detach(), y.detach(), plan, **options), theta0, alpha, terms, curved=False)
    return replace(found, x=found.x / 2) if reference_half else found


def truncated(
    model: Model,
    theta0: Tensor,
    x: Tensor,
    y: Tensor,
    alpha: Tensor,
    plan: InnerPlan,
    terms: Sequence[MatchTerm],
    *,
    last: int,
    **options: Unpack[StudentOptions],
) -> HyperGradients:
    """Gradients through the `last` steps alone: all before are constants, images and alpha in them too.

    Arguments as for `adjoint`.
    """
    if last < 1:
        raise InputError(f"A truncated gradient goes through at least one step, not {last}.")
    return _recursion(Student(model, x.detach(), y.detach(), plan, **options), theta0, alpha, terms, last=last)


def _recursion(
    student: Student,
    theta0: Tensor,
    alpha: Tensor,
    terms: Sequence[MatchTerm],
    *,
    last: int | None = None,
    curved: bool = True,
    check: bool = False,
) -> HyperGradients:
    """Through the last steps, all for None; `curved` is whether theta_i matters to g_i."""
    steps = student.plan.steps
    check_terms(terms, len(steps), theta0)
    alpha = student.rates(alpha.detach(), theta0.detach())
    first = 0 if last is None else max(0, len(steps) - last)
    path, b, kept = _walk(student, theta0.detach(), alpha, first, check)
    start = path[0]
    lam, kappa = torch.zeros_like(start), torch.zeros_like(start)
    sums = _Sums.zero(student, alpha)
    for i in reversed(range(first, len(steps))):
        for term in terms:
            if term.step == i + 1:
                lam = lam + distance_gradient(path[i + 1], start, term)
        kappa = student.momentum * kappa + lam if student.momentum else lam
        expected = kept[i] if check else None
        if student.blocks:
            found = slopes(student, steps[i], path[i], alpha * kappa, curved, expected)
            moved = found.g + student.weight_decay * path[i]
            sums.add(steps[i].index, found, student.by_block(moved * kappa))
            lam = lam - (found.theta + student.weight_decay * alpha * kappa)
            continue
        found = slopes(student, steps[i], path[i], kappa, curved, expected)
        sums.add(steps[i].index, found, found.s + student.weight_decay * (path[i] @ kappa), alpha)
        lam = lam - alpha * (found.theta + student.weight_decay * kappa)
    if b is not None:
        late = student.by_block(b * kappa) if student.blocks else b @ kappa
        sums.alpha = sums.alpha - student.momentum * late
    loss, distances = total_distance(path, start, terms)
    return HyperGradients(loss, sums.x, sums.y, sums.alpha, distances, path[-1])


def _walk(
    student: Student, theta: Tensor, alpha: Tensor, first: int, keep: bool
) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
    """Without graphs: theta_0 .. theta_N, the momentum b before step `first`, and all g_i if they are to be kept."""
    path: list[Tensor] = [theta]
    kept: list[Tensor] = []
    b = b_first = None
    for i, step in enumerate(student.plan.steps):
        if i == first:
            b_first = b
        g = student.gradient(theta, step, student.x, student.y)
        theta, b = student.advance(theta, b, g, alpha)
        path.append(theta)
        if keep:
            kept.append(g)
    return path, b_first, kept


@dataclass
class Slopes:
    """Of s = <g_i, kappa>: its value, its gradients for the step's batch and theta_i; and g_i, where it is whole."""

    s: Tensor
    x: Tensor
    y: Tensor | None
    theta: Tensor
    g: Tensor


@dataclass
class _Sums:
    """dL/dX, dL/dY and dL/dalpha so far."""

    x: Tensor
    y: Tensor | None
    alpha: Tensor

    @classmethod
    def zero(cls, student: Student, alpha: Tensor) -> _Sums:
        """Before the first step."""
        y = torch.zeros_like(student.y) if student.soft else None
        zero = alpha.new_zeros((len(student.blocks),) if student.blocks else ())
        return cls(torch.zeros_like(student.x), y, zero)

    def add(self, index: Tensor, found: Slopes, moved: Tensor, rate: Tensor | float = 1.0) -> None:
        """Take in one step: `moved` is <g_i + w theta_i, kappa>, `rate` is alpha where the slopes do not hold it."""
        index = index.to(self.x.device)
        self.alpha = self.alpha - moved
        self.x.index_add_(0, index, -rate * found.x)
        if self.y is not None and found.y is not None:
            self.y.index_add_(0, index, -rate * found.y)


def slopes(
    student: Student, step: InnerStep, theta: Tensor, kappa: Tensor, curved: bool, expected: Tensor | None
) -> Slopes:
    """The slopes of one step, a chunk of its batch at a time; those for theta are zero unless `curved`."""
    index = step.index.to(student.x.device)
    images, labels = student.x[index], student.y[index]
    total = Slopes(
        kappa.new_zeros(()), torch.zeros_like(images), None, torch.zeros_like(theta), torch.zeros_like(theta)
    )
    total.y = torch.zeros_like(labels) if student.soft else None
    fast = FastDoubleBackward(student.model, whole=expected is not None or bool(student.blocks))
    with torch.enable_grad(), isolated(step.seed):
        for rows in student.pieces(step):
            leaf, x = theta.detach().requires_grad_(), images[rows].requires_grad_()
            y = labels[rows].requires_grad_() if student.soft else labels[rows]
            (g,) = torch.autograd.grad(student.loss(leaf, step, rows, x, y, fast), leaf, create_graph=True)
            s = g @ kappa
            wanted = [x, *([y] if student.soft else []), *([leaf] if curved else [])]
            found = torch.autograd.grad(s, wanted, materialize_grads=True)
            total.s += s.detach() + fast.tally
            total.x[rows] = found[0]
            if total.y is not None:
                total.y[rows] = found[1]
            if curved:
                total.theta += found[-1]
            total.g += g.detach()
    if expected is not None:
        _compare(total.g, expected)
    return total


def _compare(g: Tensor, expected: Tensor) -> None:
    """The two passes differ by rounding only: some layers take another kernel when a graph is wanted."""
    error = float((g - expected).norm() / expected.norm().clamp_min(torch.finfo(g.dtype).tiny))
    assert error < 1e-4, f"the second run of a student step differs from the first by {error:.1e}"
