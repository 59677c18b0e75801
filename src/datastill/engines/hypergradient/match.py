"""Distances in weight space between a student and an expert, each relative to where the student started.

L = sum_k beta_k ||theta_{s_k} - theta*_k||^2 / D_k,   D_k = ||theta_0 - theta*_k||^2

(MTT: Cazenavette et al., CVPR 2022, arXiv:2203.11932, with one term at s = N.) L = 1 is no better than not moving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.errors import InputError


@dataclass(frozen=True, eq=False)
class MatchTerm:
    """One point of the student's path and what it is compared with.

    Attributes:
        step: s, the number of student steps taken, 0..N.
        target: theta*, (P,).
        weight: beta.
        towers: parts of theta that are each divided by their own D, or None for all of theta at once.
    """

    step: int
    target: Tensor
    weight: float = 1.0
    towers: tuple[slice, ...] | None = None

    def parts(self) -> tuple[slice, ...]:
        """The parts of theta with a normalizer of their own."""
        return self.towers if self.towers is not None else (slice(None),)


def check_terms(terms: Sequence[MatchTerm], steps: int, theta0: Tensor) -> None:
    """InputError unless there are terms, each at a step of the student and as long as theta."""
    if not terms:
        raise InputError("A trajectory match needs at least one term.")
    for term in terms:
        if not 0 <= term.step <= steps:
            raise InputError(f"A trajectory match cannot be made at step {term.step} of {steps} student steps.")
        if term.target.shape != theta0.shape:
            raise InputError(
                f"The student has {tuple(theta0.shape)} weights, what it is matched with {tuple(term.target.shape)}."
            )


def distance(theta: Tensor, start: Tensor, term: MatchTerm) -> Tensor:
    """||theta - theta*||^2 / ||start - theta*||^2, summed over towers; 0-dim, without beta."""
    values = []
    for part in term.parts():
        target = term.target[part]
        values.append((theta[part] - target).square().sum() / (start[part] - target).square().sum())
    return torch.stack(values).sum()


def total_distance(path: Sequence[Tensor], start: Tensor, terms: Sequence[MatchTerm]) -> tuple[Tensor, Tensor]:
    """sum_k beta_k d_k along theta_0 .. theta_N, 0-dim, and the distances d_k (K,)."""
    distances = torch.stack([distance(path[term.step], start, term) for term in terms])
    return (distances * distances.new_tensor([term.weight for term in terms])).sum(), distances


def distance_gradient(theta: Tensor, start: Tensor, term: MatchTerm) -> Tensor:
    """2 beta (theta - theta*) / D, (P,); zero outside the towers."""
    gradient = torch.zeros_like(theta)
    for part in term.parts():
        target = term.target[part]
        d = (start[part] - target).square().sum()
        gradient[part] = 2 * term.weight * (theta[part] - target) / d
    return gradient
