"""Inner features of tiles and of the real images that they began as, pair by pair (CIM, arXiv:2607.00916).

L = sum_j mean | xi(A_j x_j) - xi(A_j s_j) |
with s_j a tile of a stored image, enlarged to a whole one, x_j the real image that it was, A_j one augmentation of both
and xi an inner layer of a teacher.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.crops import edges
from datastill.core.context import Context
from datastill.core.plan import Block, Task
from datastill.engines.inner import Seen, last_maps, layer_named


class Anchored(Protocol):
    """A start of mosaics that knows what each tile was, such as `sampling.patches`."""

    @property
    def factor(self) -> int: ...

    def anchors(self, task: Task, block: Block, context: Context) -> Tensor:
        """At the size of a whole image, (n, factor^2, c, h, w)."""
        ...


@dataclass
class PairedFeatures:
    """Each tile beside its anchor, under one augmentation of the two.

    Attributes:
        patches: the start of the images, which knows the anchors.
        layer: whose output is xi; "auto" is the last one with maps of more than one pixel.
        distance: "l1", or "l2", the mean of squares.
    """

    patches: Anchored
    layer: str = "auto"
    distance: str = "l1"
    _anchors: tuple[int, Tensor] | None = field(default=None, repr=False)

    def __call__(self, context: Context) -> Tensor:
        """The loss of the block, a scalar."""
        assert context.synthetic is not None
        network = context.surrogate
        assert isinstance(network, nn.Module)
        tiles = enlarged_tiles(context.synthetic.x, self.patches.factor)
        anchors = self._anchors_of(context)
        augment = context.plan.augment
        if augment is not None:
            record = augment.draw(len(tiles), context.task.real.shape, context.generator("augment"))
            tiles, anchors = augment.apply(tiles, record), augment.apply(anchors, record)
        xi = Seen(network, self._layer(network, anchors))
        total = tiles.new_zeros(())
        size = context.chunk
        for x, s in zip(anchors.split(size), tiles.split(size), strict=True):
            with torch.no_grad():
                real = xi(x)
            apart = xi(s) - real
            each = apart.abs() if self.distance == "l1" else apart.square()
            total = total + each.flatten(1).mean(1).sum()
        return total

    def _anchors_of(self, context: Context) -> Tensor:
        """Of the block, in the order of its tiles."""
        if self._anchors is None or self._anchors[0] != context.block.key:
            found = self.patches.anchors(context.task, context.block, context)
            self._anchors = context.block.key, found.transpose(0, 1).flatten(0, 1).to(context.device)
        return self._anchors[1]

    def _layer(self, network: nn.Module, x: Tensor) -> str:
        return last_maps(network, x[:1]) if self.layer == "auto" else layer_named(network, self.layer)


def enlarged_tiles(x: Tensor, factor: int) -> Tensor:
    """The tiles of images (n, c, h, w) as whole images (factor^2 n, c, h, w): all of the first tile come first."""
    height, width = x.shape[2:]
    corners = itertools.product(edges(height, factor), edges(width, factor))
    cut = [x[:, :, top:bottom, left:right] for (top, bottom), (left, right) in corners]
    return torch.cat([F.interpolate(t, size=(height, width), mode="bilinear", align_corners=False) for t in cut])
