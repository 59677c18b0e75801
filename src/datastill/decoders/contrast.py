"""Brightness and contrast of real images, for synthetic ones: what networks that normalize each image cannot see.

A network with instance norm gives x and a x + b the same features (but at borders). The gradient of such a loss is
orthogonal to the image, so every step of plain descent makes the image longer (van Laarhoven, arXiv:1706.05350, on
weights before a norm layer), and nothing brings it back. Where networks with batch norm are trained on such images,
their running statistics are those of another contrast than test images have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.rng import Rng

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Real images that are looked at, about, in all; and of a class, at least and at most.
_IMAGES, _LEAST, _MOST = 10_000, 16, 256


@dataclass(frozen=True, eq=False)
class Contrast:
    """Of each class: the mean of each channel, (C, c), and the mean deviation of an image from its own, (C,)."""

    means: Tensor
    spread: Tensor

    @classmethod
    def of(cls, real: RealSet) -> Contrast:
        """That of some real images of each class; a class without images has zeros."""
        means, spread = torch.zeros(real.classes, real.shape[0]), torch.zeros(real.classes)
        count = max(_LEAST, min(_MOST, _IMAGES // real.classes))
        for c in range(real.classes):
            x = real.of_classes([c], count, Rng(0).generator("contrast", c)).x
            if len(x):
                means[c], spread[c] = x.mean((0, 2, 3)), _spread(x).mean()
        return cls(means, spread)

    def restore(self, images: Tensor, y: Tensor) -> None:
        """Give images (n, c, h, w) of classes y (n,) the mean and the spread of their class, in place."""
        means, spread = (t.to(images)[y.to(images.device)] for t in (self.means, self.spread))
        scale = spread / _spread(images).clamp_min(1e-12)
        centered = images - images.mean((2, 3), keepdim=True)
        images.copy_(centered * scale[:, None, None, None] + means[:, :, None, None])


def _spread(x: Tensor) -> Tensor:
    """Root mean square of each image about the means of its channels, (n,)."""
    return (x - x.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)).sqrt()
