"""The kernel of a finite network: inner products of what it makes of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureKernel:
    """k(x, x') = <f(x), f(x')>.

    Attributes:
        embed: f, images (n, c, h, w) to features (n, d).
        chunk: images per pass where no gradient is wanted; None takes all at once, as layers that couple images need.
    """

    embed: Callable[[Tensor], Tensor]
    chunk: int | None = None

    def features(self, x: Tensor) -> Tensor:
        """f(x), (n, d) float32 or wider; where x asks for no gradient without a graph and in chunks."""
        if x.requires_grad or self.chunk is None:
            with torch.set_grad_enabled(x.requires_grad):
                return _wide(self.embed(x).flatten(1))
        with torch.no_grad():
            return torch.cat([_wide(self.embed(part).flatten(1)) for part in x.split(self.chunk)])

    def gram(self, x: Tensor) -> Tensor:
        """Of images with themselves, (n, n) float64."""
        rows = self.features(x).double()
        return rows @ rows.T

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """Of images (m, ...) with others (n, ...), (m, n) float64."""
        return (self.features(a) @ self.features(b).T).double()


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
