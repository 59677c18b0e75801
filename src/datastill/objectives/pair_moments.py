"""Matching first and second moments of pairs: means, covariances and the cross-covariance of two towers' embeddings.

L = sum over towers |m - m'|^2 / tr C + |C - C'|^2 / |C|^2  +  |X - X'|^2 / |X|^2

with m, C mean and covariance of a tower's embeddings of real pairs, X = E[(f - m_f)(g - m_g)^T] between the towers, and
' those of the synthetic pairs. What a linear map from one tower to the other learns depends on these moments alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from datastill.core.context import Context

if TYPE_CHECKING:
    from datastill.models.towers import Towers


class PairMoments(NamedTuple):
    """Moments of n pairs of embeddings (n, d) and (n, k)."""

    means: tuple[Tensor, Tensor]
    covariances: tuple[Tensor, Tensor]
    cross: Tensor  #: (d, k)

    @classmethod
    def of(cls, images: Tensor, texts: Tensor, weight: Tensor | None = None) -> PairMoments:
        """Those of embeddings, weighted by `weight` (n,), of which at least one is above 0; None is 1 / n each."""
        weight = images.new_ones(len(images)) if weight is None else weight.to(images)
        share = (weight / weight.sum())[:, None]
        means = (share * images).sum(0), (share * texts).sum(0)
        f, g = images - means[0], texts - means[1]
        return cls(means, (f.T @ (share * f), g.T @ (share * g)), f.T @ (share * g))

    def distance(self, other: PairMoments, cross: float = 1.0) -> Tensor:
        """L, relative to these moments; `cross` is the weight of its last term."""
        total = cross * _relative(self.cross, other.cross)
        for mean, c, mean_other, c_other in zip(*self[:2], *other[:2], strict=True):
            total = total + (mean - mean_other).square().sum() / c.trace() + _relative(c, c_other)
        return total


def _relative(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum() / a.square().sum()


@dataclass(frozen=True)
class MatchPairMoments:
    """The distance of the moments of synthetic pairs to those of a batch of real ones, on the network of the step."""

    cross: float = 1.0  #: weight of the cross-covariance

    def __call__(self, context: Context) -> Tensor:
        """The loss, 0-dim, with a graph to the images and the vectors of sentences."""
        towers, batch = cast("Towers", context.surrogate), context.real_batch()
        assert context.synthetic is not None
        with torch.no_grad():
            embedded = _images(towers, batch.x, context.chunk), towers.sentences(batch.y)
            real = PairMoments.of(*embedded, batch.weight)
        synthetic = PairMoments.of(towers(context.synthetic.x), towers.sentences(context.synthetic.y))
        return real.distance(synthetic, self.cross)


def _images(towers: Towers, x: Tensor, chunk: int) -> Tensor:
    return torch.cat([towers(part) for part in x.split(chunk)])
