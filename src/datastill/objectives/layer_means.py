"""Distances between class means on several layers of one network (CAFE, DataDAM).

L = sum_c sum_l w_l || mean_{x in B_c} v_l(A_c(x)) - mean_{s in S_c} v_l(A_c(s)) ||^2, squared and summed over v_l,
where v_l is a view of layer l: its values, or where it is active.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.context import Context, class_means
from datastill.core.plan import Grads
from datastill.objectives.feature_means import squared_distance
from datastill.objectives.siamese import augmented, draw_siamese
from datastill.objectives.sides import class_groups, coupled, share_a_pass, synthetic_side

if TYPE_CHECKING:
    from datastill.augment.dsa import DsaRecord
    from datastill.models.base import Network

#: From a layer's values (n, ...) to what is averaged over a class, (n, d).
View = Callable[[Tensor], Tensor]


def values(layer: Tensor) -> Tensor:
    """All numbers of a layer (n, ...), as (n, d)."""
    return layer.flatten(1)


def spatial_attention(layer: Tensor, power: float) -> Tensor:
    """Where a map (n, c, h, w) is active: sum_c |F_c|^p over its pixels, as a vector of length 1, (n, h w).

    A map of zeros gives zeros.
    """
    # The scale cancels in the end; without it high powers leave the range of float32.
    scale = layer.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    relative = layer / torch.where(scale > 0, scale, torch.ones_like(scale))
    return F.normalize(relative.abs().pow(power).sum(1).flatten(1), dim=1, eps=1e-12)


@dataclass(frozen=True)
class LayerMeans:
    """Class means of several layers and of the features, on one network for both sides.

    The real side runs in chunks without a graph and keeps a sum for each class, the synthetic side in groups of
    classes; with layers that couple samples, each side is one pass.
    """

    reduces: ClassVar[bool] = False  #: sums of a class are taken chunk by chunk, not from all values at once

    layers: Mapping[str, float]  #: weight of each tap
    features: float = 1.0  #: weight of the features, the input of the last linear layer
    view: View = values  #: of the layers; features are taken as they are
    discrimination: float = 0.0  #: weight of the cross-entropy of real features against synthetic class means

    def __call__(self, context: Context) -> Grads:
        """Loss per class of the block, and its gradient for every synthetic image."""
        network = cast("Network", context.surrogate)
        joint = share_a_pass(context)
        record = draw_siamese(context)
        batch = context.real_batch()
        with torch.no_grad():
            means, features = self._real_side(network, batch, context, record, joint)
        extra = self._discriminate(network, batch, features, context, record, joint)

        def loss(x: Tensor, y: Tensor, group: Tensor) -> Tensor:
            own = {
                name: class_means(v, torch.searchsorted(group, y), len(group))
                for name, v in self._views(network, x).items()
            }
            parts = [w * squared_distance(means[name][group], own[name]) for name, w in self._weights.items()]
            total = torch.stack(parts).sum(0)
            return total if extra is None else total + extra(own["flat"], group)

        return synthetic_side(context, record, joint, loss)

    def couples(self, context: Context) -> str:
        """See `core.split.ByClass`."""
        if self.discrimination:
            return "a part of its loss holds each class against all others"
        return coupled(context)

    @property
    def _weights(self) -> dict[str, float]:
        return {**self.layers, "flat": self.features}

    def _views(self, network: Network, x: Tensor) -> dict[str, Tensor]:
        """What is averaged of each layer, (n, d) float32, and "flat", the features; of one forward pass."""
        found = network.taps(x, [*self.layers, "flat"])
        return {name: v.float() if name == "flat" else self.view(v.float()) for name, v in found.items()}

    def _real_side(
        self, network: Network, batch: Batch, context: Context, record: DsaRecord | None, joint: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Weighted class means by layer, (C, d), and the features of all images where they discriminate, (n, d)."""
        size, classes = len(batch) if joint else context.chunk, context.task.classes
        weight = torch.ones(len(batch), device=batch.x.device) if batch.weight is None else batch.weight.float()
        count = weight.new_zeros(classes).index_add(0, batch.y, weight)
        sums: dict[str, Tensor] = {}
        features = []
        for x, y, w in zip(batch.x.split(size), batch.y.split(size), weight.split(size), strict=True):
            found = self._views(network, augmented(x, y, context, record))
            for name, v in found.items():
                total = sums.setdefault(name, v.new_zeros(classes, v.shape[1]))
                total.index_add_(0, y, v * w[:, None])
            if self.discrimination:
                features.append(found["flat"])
        share = torch.where(count > 0, count, torch.ones_like(count))[:, None]
        return {name: total / share for name, total in sums.items()}, torch.cat(features or [weight[:0]])

    def _discriminate(
        self, network: Network, batch: Batch, features: Tensor, context: Context, record: DsaRecord | None, joint: bool
    ) -> Callable[[Tensor, Tensor], Tensor] | None:
        """From live class means (k, d) of a group's features to its part of the discriminative term, (k,).

        The term couples the classes through the means of all of them. These are taken first, without a graph; a
        group's part then has the term's value, and its gradient by the chain rule.
        """
        if not self.discrimination:
            return None
        with torch.no_grad():
            means = _feature_means(network, context, record, joint)
        with torch.enable_grad():
            leaf = means.requires_grad_()
            each = discriminative(features, leaf, batch.y, batch.weight, list(context.block.classes))
            (slope,) = torch.autograd.grad(each.sum(), leaf)
        value, slope = self.discrimination * each.detach(), self.discrimination * slope

        def part(own: Tensor, group: Tensor) -> Tensor:
            return value[group] + (slope[group] * (own - own.detach())).sum(1)

        return part


def discriminative(features: Tensor, means: Tensor, y: Tensor, weight: Tensor | None, classes: list[int]) -> Tensor:
    """sum_{x of class c} CE(<f(x), mean f(S_j)>_j, c) per class c, (C,): real features against synthetic class means.

    Args:
        features: f(x), (n, d).
        means: of the synthetic classes, (C, d).
        y: classes of the real images, (n,).
        weight: of the real images, (n,), or None; a class of n_c images counts n_c whatever they weigh.
        classes: that there are means of.
    """
    known = torch.tensor(classes, device=means.device)
    each = F.cross_entropy(features @ means[known].T, torch.searchsorted(known, y), reduction="none")
    total = means.new_zeros(len(means))
    if weight is not None:
        count = torch.bincount(y, minlength=len(means)).to(each.dtype)
        mass = total.index_add(0, y, weight.to(each.dtype)).clamp_min(torch.finfo(each.dtype).tiny)
        each = each * weight.to(each.dtype) * (count / mass)[y]
    return total.index_add(0, y, each)


def _feature_means(network: Network, context: Context, record: DsaRecord | None, joint: bool) -> Tensor:
    """Class means of the synthetic features, (C, d), without a graph."""
    assert context.synthetic is not None
    x, y = context.synthetic.x.detach(), context.synthetic.y.to(context.device)
    found = []
    for group in class_groups(y, len(y) if joint else context.chunk):
        rows = torch.isin(y, group).nonzero().squeeze(1)
        features = network.embed(augmented(x[rows], y[rows], context, record)).float()
        found.append(class_means(features, torch.searchsorted(group, y[rows]), len(group)))
    parts = torch.cat(found)
    means = parts.new_zeros(context.task.classes, parts.shape[1])
    means[y.unique()] = parts
    return means
