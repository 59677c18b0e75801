"""Features of images, where it pays by compiled code, which takes images in passes of one size."""

from __future__ import annotations

import torch
from torch import Tensor

from datastill.core import compilation
from datastill.models.base import Network


def features_of(network: Network, images: Tensor, size: int = 0) -> Tensor:
    """The input of the last linear layer, (n, d) float32, with its graph where gradients are on.

    Args:
        network: none of its layers couples images or draws random numbers where `size` is given.
        images: (n, c, h, w), at least one.
        size: of a pass of compiled code (`core.compilation`), the last one filled up with the first image; 0 runs
            the network as it is, on all at once.
    """
    if not size:
        return network.embed(images).float()
    parts = [compilation.call(_embed, network, compilation.padded(part, size)) for part in images.split(size)]
    return torch.cat(parts)[: len(images)].float()


def _embed(network: Network, x: Tensor) -> Tensor:
    return network.embed(x)
