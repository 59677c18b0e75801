"""Weights from known bias labels: what re-weighting could reach at best. For diagnosis only, never for a result."""

from __future__ import annotations

import torch
from torch import Tensor

from datastill.debias.diagnosis import check_bias
from datastill.debias.kde import per_class


def group_weights(y: Tensor, bias: Tensor) -> Tensor:
    """Weights 1 / n(y, b), which give every bias value that a class has the same weight.

    Args:
        y: class positions, (n,).
        bias: bias values, (n,) whole numbers of at least 0.

    Returns:
        (n,) float64 that sum to 1 in every class.

    Raises:
        InputError: the shapes do not agree, or a bias value is negative.
    """
    check_bias(bias, y)
    _, group, counts = torch.stack([y, bias]).unique(dim=1, return_inverse=True, return_counts=True)
    return per_class(1 / counts[group].double(), y)
