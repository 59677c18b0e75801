"""What differential privacy makes of statistics of real images: clipped sums, noise, public denominators.

Neighbors are a client's images with and without one of them. That one has one class, so it is in one row of the sums
alone, and its length there is at most C: the sensitivity of all rows together is C, and a step is one release.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.objectives.released_means import clipped


@dataclass(frozen=True)
class ClippedSums:
    """`Plan.reduce` of the Gaussian mechanism: (sum of clipped rows + N(0, (sigma C)^2)) / a public number.

    Attributes:
        clip: C; infinite clips nothing.
        sigma: the noise multiplier; 0 adds none.
        expected: images of each class in a batch, (C,), known without the data; None divides by the realized counts,
            which tells them: no mechanism, and what plain FedDM does.
    """

    clip: float
    sigma: float
    expected: Tensor | None

    def __call__(self, values: Tensor, y: Tensor, weight: Tensor | None, context: Context) -> Tensor:
        """Statistics per class, (C, d)."""
        if weight is not None:
            raise InputError("Weights of real images change what one image contributes; leave them out under privacy.")
        classes = context.task.classes
        total = clipped_sums(values, y, classes, self.clip)
        if self.sigma:
            noise = torch.randn(total.shape, generator=context.generator("privacy")).to(total)
            total = total + self.sigma * self.clip * noise
        counts = torch.bincount(y, minlength=classes) if self.expected is None else self.expected
        counts = counts.to(total)
        return total / torch.where(counts > 0, counts, torch.ones_like(counts))[:, None]


def clipped_sums(values: Tensor, y: Tensor, classes: int, clip: float) -> Tensor:
    """Sums (C, d) of rows (n, d) that are at most `clip` long."""
    return values.new_zeros(classes, values.shape[1]).index_add(0, y, clipped(values, clip))


def noised_counts(labels: Tensor, classes: int, sigma: float, rng: Rng) -> Tensor:
    """Images per class with Gaussian noise, at least 0: one release of sensitivity 1, (C,) float32."""
    counts = torch.bincount(labels, minlength=classes).double()
    noise = torch.randn(classes, generator=rng.generator("counts"), dtype=torch.double)
    return (counts + sigma * noise).clamp_min(0).float()
