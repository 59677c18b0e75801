"""Real images that stand for clusters of their class, as the step's network sees it (DREAM: arXiv:2302.14416).

Every class is cut into k clusters by k-means on features, and the image nearest to each centroid is taken. A random
batch misses the rare and holds the common several times; representatives cover a class evenly.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Block, Task
from datastill.data.real import check_ipc
from datastill.sampling.clusters import representatives
from datastill.sampling.inits import mosaic
from datastill.sampling.weighted import WeightedClassBatches
from datastill.training.frozen_norm import freeze_batch_norm

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.models.base import Network

#: Names in `context.state`.
_INDEX, _WEIGHT = "representatives", "representatives/weight"


@dataclass(frozen=True)
class Candidates:
    """The images of a class that are clustered.

    Those that weigh nothing are none. Weights count in the centroids; with `by_weight` they are frequencies instead:
    candidates are drawn in proportion to them, as `WeightedClassBatches` does, and each counts as often as it came.
    """

    most: int = 0  #: of a class, a new random part of it each time; 0 is all
    by_weight: bool = False

    def of_class(self, real: RealSet, c: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Positions of distinct images of class position c, (m,), and what each counts, (m,), or None."""
        if self.by_weight:
            count = self.most or len(real.class_index(c))
            index, times = WeightedClassBatches(count).of_class(real, c, generator).unique(return_counts=True)
            return index, times.float()
        members = real.drawable(c)
        if 0 < self.most < len(members):
            members = members[torch.randperm(len(members), generator=generator)[: self.most].sort().values]
        return members, None if real.weights is None else real.weights[members]


@dataclass(frozen=True)
class Representatives:
    """The images nearest to the k centroids of every class of the block, anew every `interval` steps.

    Clusters are made in the features of the step's network, and kept in `context.state` until the next time. A class
    of no more than k candidates gives all of them. Where images have weights, a representative weighs what its cluster
    does in any case: equal ones would forget the weights.

    Raises:
        InputError: `k` or `interval` is below 1; when drawing, the step has no network to look through.
    """

    k: int
    interval: int = 10
    candidates: Candidates = Candidates()
    #: what each counts in means and losses: as much as any other, or the size of its cluster
    weighting: Literal["equal", "size"] = "equal"

    def __post_init__(self) -> None:
        if self.k < 1 or self.interval < 1:
            raise InputError(f"{self.k} clusters every {self.interval} steps are none; use at least 1 of both.")

    @property
    def per_class(self) -> int:
        """So many are drawn of every class."""
        return self.k

    def by_weight(self) -> Representatives:
        """Representatives of candidates that are drawn in proportion to their weights."""
        return replace(self, candidates=replace(self.candidates, by_weight=True))

    def draw(self, real: RealSet, context: Context) -> Batch:
        """Images of the block's classes at this step."""
        if context.step % self.interval == 0:
            self._refresh(real, context)
        index = context.state[_INDEX].cpu()
        weight = context.state.get(_WEIGHT)
        return replace(real.batch(index), weight=None if weight is None else weight.cpu())

    def _refresh(self, real: RealSet, context: Context) -> None:
        network = _still(_network(context), context)
        members = [self.candidates.of_class(real, c, context.generator("candidates", c)) for c in context.block.classes]
        found = _representatives(network, real, members, self.k, context.generator("clusters"), context)
        context.state[_INDEX] = torch.cat([index for index, _ in found])
        if self.weighting == "size" or self.candidates.by_weight or real.weights is not None:
            context.state[_WEIGHT] = torch.cat([mass for _, mass in found])


@dataclass(frozen=True)
class ClusteredReal:
    """Synthetic images start from representatives of their class on a random network, one for every tile.

    With a factor above 1 every tile of a stored image is a real image, as in `MixReal`; images come again in the same
    order where a class has too few.
    """

    factor: int = 1
    candidates: Candidates = Candidates()

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images, and `selected`: their positions in the real set; for mosaics `mixed`, (n, factor^2)."""
        check_ipc(task.real, task.ipc)
        family = context.plan.network or task.network
        random = family(context.rng.derive("network of the start")).to(task.device)
        network = _still(random, context)
        rng, tiles = context.rng, task.ipc * self.factor**2
        members = [self._members(task, c, rng.generator("start candidates", c)) for c in block.classes]
        found = _representatives(
            network, task.real, members, tiles, rng.generator("start clusters", block.key), context
        )
        orders = [index[torch.arange(tiles) % len(index)].view(self.factor**2, task.ipc).T for index, _ in found]
        rows = dict(zip(block.classes, orders, strict=True))
        places = zip(block.index.tolist(), block.y.tolist(), strict=True)
        index = torch.stack([rows[c][i % task.ipc] for i, c in places])
        if self.factor == 1:
            return task.real.batch(index[:, 0]).x, {"selected": index[:, 0]}
        return mosaic(task.real, index, self.factor), {"mixed": index}

    def _members(self, task: Task, c: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        index, weight = self.candidates.of_class(task.real, c, generator)
        if len(index) < task.ipc:  # the others weigh nothing
            return task.real.class_index(c), None
        return index, weight

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "clusters", "factor": self.factor, "candidates": self.candidates.most}


def _representatives(
    network: Network,
    real: RealSet,
    members: Sequence[tuple[Tensor, Tensor | None]],
    k: int,
    generator: torch.Generator,
    context: Context,
) -> list[tuple[Tensor, Tensor]]:
    """Positions in the real set that stand for k clusters of each class, and what each cluster weighs."""
    with torch.no_grad():
        features = [_features(network, real, index, context, needed=len(index) > k) for index, _ in members]
        found = representatives(features, k, generator, [weight for _, weight in members])
    return [(index[chosen], mass) for (index, _), (chosen, mass) in zip(members, found, strict=True)]


def _features(network: Network, real: RealSet, index: Tensor, context: Context, needed: bool) -> Tensor:
    """Features (n, d) of real images, float32 on the device; of no width where all images are taken anyway."""
    if not needed:
        return torch.zeros(len(index), 0)
    parts = (real.batch(i).x.to(context.device) for i in index.split(context.chunk))
    return torch.cat([network.embed(x).float() for x in parts])


def _network(context: Context) -> Network:
    """The step's surrogate, if features can be seen through it."""
    from datastill.models.base import Network

    if not isinstance(context.surrogate, Network):
        raise InputError("Clusters need the features of a network, and this method's steps have none to look through.")
    return context.surrogate


def _still(network: Network, context: Context) -> Network:
    """A copy in evaluation mode, whose batch norm has statistics of real images."""
    same = cast("Network", copy.deepcopy(network))
    freeze_batch_norm(same, context)
    return same.eval()
