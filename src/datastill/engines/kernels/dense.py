"""Kernels of dense ReLU networks of infinite width, in closed form.

With S0(x, x') = w <x, x'>/d + b, r = S(x, x') / sqrt(S(x, x) S(x', x')), and for every hidden layer

    S'(x, x') = (w/2) sqrt(S(x, x) S(x', x')) k1(r) + b,   T'(x, x') = S'(x, x') + T(x, x') (w/2) k0(r),   T0 = S0

S is the covariance of the outputs at random weights (NNGP), T the neural tangent kernel (NTK); k0 and k1 are in `relu`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from datastill.engines.kernels.relu import normalized, relu_pairs


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
        """Images (n, c, h, w) as rows (n, d), without their mean if they are normalized, and factors for them (n,)."""
        if self.normalize:
            return normalized(x)
        rows = x.flatten(1)
        return rows, rows.new_ones(len(rows), dtype=torch.float64)

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
        """From S0 of pairs (m, n), and of the images with themselves (m,) and (n,), through all layers."""
        t, half = s, self.weight / 2
        for _ in range(self.depth):
            outputs, slopes = relu_pairs(s, left, right, same)
            s = self.weight * outputs + self.bias
            t = s + self.weight * t * slopes if self.kind == "ntk" else s
            left, right = half * left + self.bias, half * right + self.bias
        return t
