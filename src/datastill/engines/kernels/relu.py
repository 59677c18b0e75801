"""What a layer of infinitely many ReLUs makes of a covariance (the arc-cosine kernels of Cho and Saul, NeurIPS 2009).

With r = S(x, x') / sqrt(S(x, x) S(x', x')) of the inputs, outputs have the covariance sqrt(S(x, x) S(x', x')) k1(r) / 2
and their slopes k0(r) / 2, where

    k1(r) = (sqrt(1 - r^2) + r (pi - acos r)) / pi,   k0(r) = (pi - acos r) / pi
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Cosines stay below 1 by this much (of float64): the slope of k0 at 1 is infinite.
_BELOW_ONE = 1e-12


class _ArcCosine(torch.autograd.Function):
    """r -> k1(r) and k0(r), with k1' = k0 and k0' = 1 / (pi sqrt(1 - r^2)): no differences of large numbers."""

    @staticmethod
    def forward(ctx: Any, r: Tensor) -> tuple[Tensor, Tensor]:
        sine = (1 - r * r).sqrt()
        k0 = 1 - torch.acos(r) / math.pi
        ctx.save_for_backward(sine, k0)
        return sine / math.pi + r * k0, k0

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g1: Tensor, g0: Tensor) -> Tensor:
        sine, k0 = ctx.saved_tensors
        return g1 * k0 + g0 / (math.pi * sine)


def relu_pairs(s: Tensor, left: Tensor, right: Tensor, same: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of pairs of images: covariance of the outputs, and of their slopes.

    Args:
        s: covariance of the inputs, (m, n, ...) float64.
        left, right: variances, (m, ...) and (n, ...).
        same: (m, n) bool, pairs of an image with itself; they get numbers without meaning, and finite slopes.

    Returns:
        Two tensors like `s`.
    """
    scale = (left.sqrt()[:, None] * right.sqrt()).clamp_min(1e-30)
    r = (s / scale).clamp(_BELOW_ONE - 1, 1 - _BELOW_ONE)
    if same is not None:
        r = r.masked_fill(same.view(*same.shape, *[1] * (r.dim() - 2)), 0.0)
    k1, k0 = _ArcCosine.apply(r)
    return 0.5 * scale * k1, 0.5 * k0


def normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, d) of images without their mean, and factors (n,) float64 that bring them to mean square 1.

    Rows are not multiplied: two more copies of a batch of real images would cost as much as their products.
    """
    rows = x.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    rms = torch.linalg.vector_norm(rows, dim=1).double() / rows.shape[1] ** 0.5
    return rows, 1 / rms.clamp_min(1e-6)
