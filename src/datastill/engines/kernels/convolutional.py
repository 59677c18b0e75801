"""Kernels of convolutional ReLU networks of infinite width without pooling, in closed form.

Layers are convolutions of 3 x 3 windows at stride 2 with zeros around, and the readout is dense: weights of different
places are independent. So a pair of images needs the covariances of equal places alone, O(hw) numbers (with pooling it
were all pairs of places, O((hw)^2)). With m_l the mean over the nine places of a window, and at last over all places,

    S  = w m_0(<x_p, x'_p> / c) + b,   S' = w m_l(V(S)) + b,   T' = S' + w m_l(T V'(S)),   T0 = S

V and V' are those of `relu`. S is the covariance of the outputs (NNGP), T the neural tangent kernel (NTK).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.checkpoint import checkpoint

from datastill.engines.kernels.relu import normalized, relu_pairs

#: Numbers of a pair of images that are in memory at once, over all pairs.
_AT_ONCE = 2**21


@dataclass(frozen=True)
class ConvKernel:
    """The kernel of a convolutional ReLU network with a dense readout.

    Attributes:
        kind: "ntk" or "nngp".
        depth: convolutions.
        weight: w, the variance of a layer's weights times their number.
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
        maps = self._maps(x)
        same = torch.eye(len(x), dtype=torch.bool, device=x.device)
        return torch.where(same, self._diagonal(maps)[:, None], self._pairs(maps, maps, same))

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """Of images (m, c, h, w) with others (n, c, h, w), (m, n) float64."""
        return self._pairs(self._maps(a), self._maps(b), None)

    def _maps(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w), normalized if asked for, float64."""
        if not self.normalize:
            return x.double()
        rows, factors = normalized(x)
        return (rows.double() * factors[:, None]).view(x.shape)

    def _pairs(self, a: Tensor, b: Tensor, same: Tensor | None) -> Tensor:
        """Chunks of rows, each computed again for its gradient: memory is that of one chunk."""
        at_once = max(1, _AT_ONCE // (len(b) * a.shape[2] * a.shape[3]))
        left, right = self._squares(a), self._squares(b)
        chunks = []
        for i in range(0, len(a), at_once):
            part = slice(i, i + at_once)
            given = (a[part], b, left[part], right, None if same is None else same[part])
            chunks.append(checkpoint(self._chunk, *given, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(chunks)

    def _chunk(self, a: Tensor, b: Tensor, left: Tensor, right: Tensor, same: Tensor | None) -> Tensor:
        """Of images (m, c, h, w) and (n, c, h, w) with their squares (m, h, w) and (n, h, w)."""
        (m, c, h, w), n = a.shape, len(b)
        places = a.flatten(2).permute(2, 0, 1) @ b.flatten(2).permute(2, 1, 0) / c  # (hw, m, n)
        first, *others = self._means()
        s = self.weight * first(places.permute(1, 2, 0).reshape(m, n, h, w)) + self.bias
        left, right = (self.weight * first(one) + self.bias for one in (left, right))
        t = s
        for mean in others:
            outputs, slopes = relu_pairs(s, left, right, same)
            s = self.weight * mean(outputs) + self.bias
            t = s + self.weight * mean(t * slopes) if self.kind == "ntk" else s
            left, right = (self.weight * mean(one / 2) + self.bias for one in (left, right))
        return t[..., 0, 0]

    def _diagonal(self, maps: Tensor) -> Tensor:
        """The kernel of images with themselves, (n,): outputs have half the variance of inputs, slopes are 1/2."""
        first, *others = self._means()
        s = t = self.weight * first(self._squares(maps)) + self.bias
        for mean in others:
            s = self.weight * mean(s / 2) + self.bias
            t = s + self.weight * mean(t / 2)
        return (t if self.kind == "ntk" else s)[..., 0, 0]

    def _squares(self, maps: Tensor) -> Tensor:
        """<x_p, x_p> / c, (n, h, w)."""
        return maps.square().mean(1)

    def _means(self) -> list[Callable[[Tensor], Tensor]]:
        """Over windows for every convolution, and over all places for the readout; of maps (..., h, w)."""
        return [_windows] * self.depth + [lambda maps: maps.mean((-2, -1), keepdim=True)]


def _windows(maps: Tensor) -> Tensor:
    """Means of 3 x 3 windows at stride 2; what lies outside is zero and counts."""
    stacked = maps.reshape(-1, 1, *maps.shape[-2:])
    found = avg_pool2d(stacked, 3, stride=2, padding=1)
    return found.view(*maps.shape[:-2], *found.shape[-2:])
