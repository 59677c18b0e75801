"""A teacher moved a little for every block: directed weight adjustment (Du et al., NeurIPS 2024, arXiv:2409.17612)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.recovery_views import RecoveryViews
from datastill.core.context import Context
from datastill.core.plan import Block
from datastill.surrogates.pretrained import Pretrained


@dataclass
class Perturbed:
    """The teacher after K steps up the cross-entropy of a block's own start, always from the teacher's own weights.

    theta <- theta + (rho / K) g / || g ||, g the gradient over all parameters in one norm, so the way is rho long at
    most. The teacher itself, its buffers and gradients stay as they are; a block has the same network in any order.

    Attributes:
        source: the teacher.
        steps: K; 0 leaves the teacher as it is.
        radius: rho.
        normalize: False takes rho g / K, the plain gradient (the poster's form with steps=1).
        batch: the block's initial images, as its first step sees them ("init"), or real images of its classes ("real").
        real_batch: how many of each class, for "real".
        views: of the recovery, with which the initial images are seen.
        accumulate: begin where the block before of the same images of their classes ended, as released, where that is
            an accident: such blocks' steps are taken again here, so that a block does not depend on the order.
    """

    source: Pretrained
    views: RecoveryViews
    steps: int = 12
    radius: float = 0.015
    normalize: bool = True
    batch: Literal["init", "real"] = "init"
    real_batch: int = 10
    accumulate: bool = False
    _start: Tensor | None = field(default=None, repr=False)
    _network: nn.Module | None = field(default=None, repr=False)

    def begin(self, context: Context) -> None:
        """Keep the block's start; the network is made when it is first drawn."""
        self.source.begin(context)
        self._network = None
        with torch.no_grad():
            start = context.plan.decoder.decode(context.codes, context.block.y, None)
        self._start = start.x.detach().clone()

    def draw(self, context: Context) -> nn.Module:
        """The network of the block."""
        if self._network is None:
            self._network = self._perturbed(context)
        return self._network

    def _perturbed(self, context: Context) -> nn.Module:
        if self.steps == 0 or self.radius == 0:
            return self.source.network
        network = copy.deepcopy(self.source.network).requires_grad_(True).eval()
        for block in [*(_before(context) if self.accumulate else []), context.block]:
            self._ascend(network, *self._images(context, block))
        return network.requires_grad_(False)

    def _ascend(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
        weights = list(network.parameters())
        for _ in range(self.steps):
            with torch.enable_grad():
                gradient = torch.autograd.grad(F.cross_entropy(network(x), y), weights, allow_unused=True)
            found = [(w, g) for w, g in zip(weights, gradient, strict=True) if g is not None]
            norm = torch.stack([g.square().sum() for _, g in found]).sum().sqrt() + 1e-12
            size = self.radius / self.steps / (float(norm) if self.normalize else 1.0)
            with torch.no_grad():
                for weight, g in found:
                    weight.add_(g, alpha=size)

    def _images(self, context: Context, block: Block) -> tuple[Tensor, Tensor]:
        """What the loss climbs on: images in the Space, and their classes."""
        if self.batch == "init":
            start = self._start_of(context, block)
            record = self.views.draw(context.rng.generator("views", block.key, 0), len(start), start.shape, 0.0)
            return self.views.apply(start, record), block.y.to(context.device)
        real = context.task.real
        generator = context.rng.generator("perturbation", block.key)
        drawn = real.of_classes(block.classes, self.real_batch, generator)
        return drawn.x.to(context.device), drawn.y.to(context.device)

    def _start_of(self, context: Context, block: Block) -> Tensor:
        """Initial images of a block."""
        if block.key == context.block.key:
            assert self._start is not None
            return self._start
        there = replace(context, block=block)
        images, _ = context.plan.init.images(context.task, block, there)
        decoder = context.plan.decoder
        with torch.no_grad():
            return decoder.decode(decoder.encode(images.to(context.device)), block.y, None).x

    def advance(self, context: Context) -> None:
        """Nothing to advance."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to remember: start and network follow from the block."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to remember."""


def _before(context: Context) -> list[Block]:
    """The blocks before this one that hold the same images of other classes."""
    task = context.task

    def images(block: Block) -> set[int]:
        return set((block.index % task.ipc).tolist())

    blocks = context.plan.partition.blocks(task.labels)
    return [b for b in blocks if b.key < context.block.key and images(b) == images(context.block)]
