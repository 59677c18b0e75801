"""Values that are rounded up or down so that networks see less of it (refinement of arXiv:2603.13346).

min_q || f(dec(x)) - f(dec(low + step q)) ||^2 over q in {floor(u), floor(u) + 1}, u = (x - low) / step, with dec the
decoder of the set and f the features of a fresh network in every step. There, images move freely and the gradient
passes the rounding as if it were not there; measured here, that raised the error on networks that had no part in it.
So each value has a share h of being rounded up, which is driven to 0 or 1 in the end (arXiv:2004.10568).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.rng import Rng
from datastill.models import resolve_network

if TYPE_CHECKING:
    from datastill.models.base import Network

#: Images of a pass, Adam's rate, weight of what drives shares to 0 or 1, when it sets in, and the network.
_AT_ONCE, _LR, _WEIGHT, _FROM, _NETWORK = 64, 0.05, 0.3, 0.2, "convnet:width=32"


def rounded(
    values: Tensor,
    levels: int,
    read_back: Callable[[Tensor, Tensor], Tensor],
    wanted: tuple[Tensor, Callable[[Tensor, Tensor], Tensor]],
    classes: int,
    steps: int,
) -> Tensor:
    """Values of 0 to `levels`, each rounded up or down.

    Args:
        values: u of stored images, (n, c, h, w), from 0 to `levels`.
        levels: the highest.
        read_back: such values of some images and the positions of these to pixels, with a gradient.
        wanted: the images as they are, and what makes of pixels and their positions what networks see, (m, c, H, W).
        classes: that networks tell apart.
        steps: of all images.

    Returns:
        Whole numbers (n, c, h, w) float32.
    """
    rng, (pixels, decoded) = Rng(0).child("refine"), wanted
    first = torch.arange(1)
    shape = decoded(pixels[:1], first).shape
    factory = resolve_network(_NETWORK, channels=shape[1], classes=classes, size=(shape[2], shape[3]))
    below = values.floor().clamp(0, levels - 1)
    share = ((values - below).clamp(1e-3, 1 - 1e-3) + 0.1) / 1.2
    leaf = (share / (1 - share)).log().requires_grad_()
    search = torch.optim.Adam([leaf], lr=_LR)
    for step in range(steps):
        network, done = factory(rng.derive("network", step)).requires_grad_(False), step / steps
        search.zero_grad()
        for index in torch.arange(len(values)).split(_AT_ONCE):
            up = _share(leaf[index])
            loss = _error(network, decoded(pixels[index], index), decoded(read_back(below[index] + up, index), index))
            if done > _FROM:
                between = 1 - (2 * up - 1).abs() ** (20 * (1 - done) + 2)
                loss = loss + _WEIGHT * between.mean() * len(index)
            (loss / len(values)).backward()
        search.step()
    return below + (_share(leaf.detach()) > 0.5).float()


def _share(leaf: Tensor) -> Tensor:
    """From numbers without bounds to [0, 1], both ends included."""
    return (leaf.sigmoid() * 1.2 - 0.1).clamp(0, 1)


def _error(network: Network, seen: Tensor, approximate: Tensor) -> Tensor:
    """Squared error of features, relative to their size, of all images."""
    with torch.no_grad():
        features = network.embed(seen)
    apart = (network.embed(approximate) - features).square().sum(1)
    return apart.sum() / features.square().sum(1).mean().clamp_min(1e-12)
