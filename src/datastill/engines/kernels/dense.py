"""Kernels of dense ReLU networks of infinite width, in closed form.

With S0(x, x') = w <x, x'>/d + b, r = S(x, x') / sqrt(S(x, x) S(x', x')), and for every hidden layer

    S'(x, x') = (w/2) sqrt(S(x, x) S(x', x')) k1(r) + b,   k1(r) = (sqrt(1 - r^2) + r (pi - acos r)) / pi
    T'(x, x') = S'(x, x') + T(x, x') (w/2) k0(r),          k0(r) = (pi - acos r) / pi,   T0 = S0

S is the covariance of the outputs at random weights (NNGP), T the neural tangent kernel (NTK).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

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


@dataclass(frozen=True)
class DenseKernel:
    """The kernel of a dense ReLU network; images are flattened.

    Attributes:
        kind: "ntk" or "nngp".
        depth: hidden layers; 0 is the linear kernel S0.
        weight: w, the variance of a layer's weights times its width.
        bias: b, the variance of the biases.
        normalize: bring every image to mean 0 and mean square 1 first.
    """

    kind: Literal["ntk", "nngp"] = "ntk"
    depth: int = 3
    weight: float = 2.0
    bias: float = 0.01
    normalize: bool = True

    def gram(self, x: Tensor) -> Tensor:
        """Of images with themselves, (n, n) float64; on the diagonal r = 1 is left out, where slopes are infinite."""
        rows, scale = self._rows(x.double())
        inner = self._first(rows @ rows.T * scale[:, None] * scale, rows)
        squares = inner.diagonal()
        same = torch.eye(len(x), dtype=torch.bool, device=x.device)
        return torch.where(same, self._diagonal(squares)[:, None], self._layers(inner, squares, squares, same))

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """Of images (m, ...) with others (n, ...), (m, n) float64; inner products are in the images' own type."""
        (left, at_left), (right, at_right) = self._rows(a), self._rows(b)
        inner = self._first((left @ right.T).double() * at_left[:, None] * at_right, left)
        squares = [
            self._first((torch.linalg.vector_norm(rows, dim=1).double() * scale).square(), rows)
            for rows, scale in ((left, at_left), (right, at_right))
        ]
        return self._layers(inner, squares[0], squares[1], None)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, c, h, w) as rows (n, d), without their mean if they are normalized, and factors for them (n,).

        Rows are not multiplied: two more copies of a batch of real images would cost as much as their products.
        """
        rows = x.flatten(1)
        if not self.normalize:
            return rows, rows.new_ones(len(rows), dtype=torch.float64)
        rows = rows - rows.mean(1, keepdim=True)
        rms = torch.linalg.vector_norm(rows, dim=1).double() / rows.shape[1] ** 0.5
        return rows, 1 / rms.clamp_min(1e-6)

    def _first(self, inner: Tensor, rows: Tensor) -> Tensor:
        """S0 of inner products."""
        return self.weight * inner / rows.shape[1] + self.bias

    def _diagonal(self, squares: Tensor) -> Tensor:
        """The kernel of images with themselves from S0 (n,): k0 = k1 = 1."""
        s = t = squares
        for _ in range(self.depth):
            s = self.weight / 2 * s + self.bias
            t = s + self.weight / 2 * t
        return t if self.kind == "ntk" else s

    def _layers(self, s: Tensor, left: Tensor, right: Tensor, same: Tensor | None) -> Tensor:
        """From S0 of pairs (m, n), and of the images with themselves (m,) and (n,), through all layers.

        Pairs that are the `same` get numbers without meaning, and finite slopes.
        """
        t, half = s, self.weight / 2
        for _ in range(self.depth):
            scale = (left.sqrt()[:, None] * right.sqrt()).clamp_min(1e-30)
            r = (s / scale).clamp(_BELOW_ONE - 1, 1 - _BELOW_ONE)
            k1, k0 = _ArcCosine.apply(r if same is None else r.masked_fill(same, 0.0))
            s = half * scale * k1 + self.bias
            t = s + half * t * k0 if self.kind == "ntk" else s
            left, right = half * left + self.bias, half * right + self.bias
        return t
