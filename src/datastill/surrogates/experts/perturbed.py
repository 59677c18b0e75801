"""Starts with noise on their convolutions (AST: Shen et al., arXiv:2310.10541)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.engines.flat import FlatModel
from datastill.surrogates.experts.sample import Experts, Segment

if TYPE_CHECKING:
    from datastill.core.context import Context
    from datastill.models.base import Network


class PerturbedExperts(Experts):
    """Segments whose starts are perturbed: w + a (d / ||d||) w for every tensor w of four axes, d standard normal.

    The perturbed start is where the student begins and what distances are relative to. ||d|| is over the whole tensor,
    so that a weight changes by about a / sqrt(numel): 0.3 % for 128 x 128 x 3 x 3.

    Args:
        source, options: as for `Experts`.
        perturbation: a.
    """

    def __init__(self, source: Any, *, perturbation: float = 1.0, **options: Any) -> None:
        super().__init__(source, **options)
        self.perturbation = perturbation

    def draw(self, context: Context) -> Segment:
        """The segment of this step."""
        segment = super().draw(context)
        noise = context.generator("expert-perturbation")
        return replace(segment, start=perturbed(segment.start, segment.network, self.perturbation, noise))


def perturbed(theta: Tensor, network: Network, scale: float, generator: torch.Generator) -> Tensor:
    """Flat weights (P,) of a network, those of four axes with noise on them."""
    parts = []
    for w in FlatModel(network).split(theta).values():
        if w.ndim == 4:
            d = torch.randn(w.shape, generator=generator).to(w)
            w = w + scale * (d / d.norm()) * w
        parts.append(w.flatten())
    return torch.cat(parts)
