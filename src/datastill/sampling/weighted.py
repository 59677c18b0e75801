"""Real samples drawn in proportion to their weights: batches, and where synthetic images start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Block, Task
from datastill.core.rng import Rng
from datastill.data.real import check_ipc
from datastill.sampling.inits import mosaic

if TYPE_CHECKING:
    from datastill.data.real import RealSet


@dataclass(frozen=True)
class WeightedClassBatches:
    """`n` images of every class of the block, drawn with probability w_i, class by class.

    Drawn with replacement: an unweighted mean over the batch then has the weighted class mean as its expectation,
    whatever n and the class size are, and the batch carries no weights. Where few images hold most of the weight its
    variance is far smaller than that of a weighted mean over `ClassBatches`, which seldom sees them. Without
    replacement the heavy images would run out, and the mean would drift towards the unweighted one.

    Raises:
        InputError: `n` is below 1; when drawing, the set has no weights, or a class weighs nothing.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"A batch of {self.n} real images per class is empty; use at least 1.")

    @property
    def per_class(self) -> int:
        """So many are drawn of every class."""
        return self.n

    def draw(self, real: RealSet, context: Context) -> Batch:
        """Images of the block's classes at this step."""
        unweighted = real.with_weights(None)
        index = [self.of_class(real, c, context.generator("real", c)) for c in context.block.classes]
        return unweighted.batch(torch.cat(index))

    def of_class(self, real: RealSet, c: int, generator: torch.Generator) -> Tensor:
        """Positions of `n` images of class position c, some of them more than once."""
        members, weights = weights_of_class(real, c)
        reach = weights.cumsum(0)
        at = torch.rand(self.n, dtype=torch.float64, generator=generator) * reach[-1]
        return members[torch.searchsorted(reach, at, right=True).clamp_max(int(weights.nonzero()[-1]))]


@dataclass(frozen=True)
class WeightedReal:
    """Distinct real images of each class, drawn one after the other with probability w_i among those left.

    The draw of a seed is a sequence: more images per class add to those of fewer. It is not the selection of
    `RandomReal`, so a run from it and the Random beside it do not start from the same images; weighted *selection*
    alone removes much of a bias, and flatters any method that starts from it. With a factor above 1 every tile of a
    stored image is a real image, as in `MixReal`; images come again in the same order where a class has too few.
    """

    factor: int = 1

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images, and `selected`: their positions in the real set; for mosaics `mixed`, (n, factor^2)."""
        index = weighted_indices(task.real, task.ipc, task.seed, self.factor**2)[block.index]
        if self.factor == 1:
            return task.real.batch(index[:, 0]).x, {"selected": index[:, 0]}
        return mosaic(task.real, index, self.factor), {"mixed": index}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "weighted", "factor": self.factor}


def weighted_indices(real: RealSet, ipc: int, seed: int, tiles: int = 1) -> Tensor:
    """Positions of the images that a weighted start takes, (C * ipc, tiles), class by class.

    Raises:
        InputError: the set has no weights, a class weighs nothing, or a class has fewer than `ipc` images.
    """
    check_ipc(real, ipc)
    rng, chosen = Rng(seed), []
    for c in range(real.classes):
        members, weights = weights_of_class(real, c)
        # Exponential times with rates w_i: the order of arrival is that of draws without replacement.
        uniform = torch.rand(len(members), dtype=torch.float64, generator=rng.generator("weighted selection", c))
        times = torch.where(weights > 0, -torch.log1p(-uniform) / weights, torch.inf)
        order = members[times.argsort(stable=True)]
        chosen.append(order[torch.arange(ipc * tiles) % len(order)].view(tiles, ipc).T)
    return torch.cat(chosen)


def weights_of_class(real: RealSet, c: int) -> tuple[Tensor, Tensor]:
    """Positions of the images of class position c, (n_c,), and their weights, (n_c,) float64.

    Raises:
        InputError: the set has no weights, or the class has none above 0.
    """
    if real.weights is None:
        raise InputError("A weighted draw needs a set with weights, and this one has none; de-bias it first.")
    real.drawable(c)  # refuses a class that weighs nothing
    members = real.class_index(c)
    return members, real.weights[members].double()
