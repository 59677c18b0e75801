"""Back-propagation through all N student steps, every graph kept (MTT: arXiv:2203.11932). Memory grows with N."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from datastill.engines.hypergradient.match import MatchTerm, check_terms, total_distance
from datastill.engines.hypergradient.result import HyperGradients
from datastill.engines.hypergradient.steps import InnerPlan
from datastill.engines.hypergradient.student import Model, Student, StudentOptions


def full_unroll(
    model: Model,
    theta0: Tensor,
    x: Tensor,
    y: Tensor,
    alpha: Tensor,
    plan: InnerPlan,
    terms: Sequence[MatchTerm],
    **options: Unpack[StudentOptions],
) -> HyperGradients:
    """Exact gradients by autograd alone; the reference for the other engines. Arguments as for `adjoint`."""
    check_terms(terms, len(plan), theta0)
    x = x.detach().requires_grad_()
    alpha = (alpha.detach() if options.get("blocks") else alpha.detach().reshape(())).requires_grad_()
    y = y.detach().requires_grad_() if y.is_floating_point() else y
    student = Student(model, x, y, plan, **options)
    with torch.enable_grad():
        theta = theta0.detach().requires_grad_()
        path, b, rates = [theta], None, student.rates(alpha, theta0.detach())
        for step in plan.steps:
            g = student.gradient(theta, step, x, y, create_graph=True)
            theta, b = student.advance(theta, b, g, rates)
            path.append(theta)
        loss, distances = total_distance(path, theta0.detach(), terms)
        leaves = [x, alpha, y] if student.soft else [x, alpha]
        found = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return HyperGradients(
        loss=loss.detach(),
        x=found[0],
        y=found[2] if student.soft else None,
        alpha=found[1],
        distances=distances.detach(),
        theta=theta.detach(),
    )
