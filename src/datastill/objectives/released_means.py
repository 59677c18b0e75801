"""Class means that are released once and matched several times, of embeddings in a ball (Gaussian mechanism).

What a step takes of real images is `context.reduce` of their embeddings alone: once released, any number of image
updates that follow cost no more privacy. Both sides are brought into the ball, so that like is matched with like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.context import Context, class_means
from datastill.core.plan import Grads
from datastill.objectives.feature_means import FeatureMeans, real_features, squared_distance
from datastill.objectives.siamese import augmented, draw_siamese
from datastill.objectives.sides import GroupLoss, share_a_pass, synthetic_side

if TYPE_CHECKING:
    from datastill.augment.dsa import DsaRecord
    from datastill.models.base import Network

#: Real images whose gradients are computed side by side.
SIDE_BY_SIDE = 16


def clipped(values: Tensor, most: float) -> Tensor:
    """Rows (n, d) that are longer than `most` shortened to it; as they are where it is infinite."""
    if math.isinf(most):
        return values
    length = values.norm(dim=1, keepdim=True)
    return values * (most / length.clamp_min(torch.finfo(values.dtype).tiny)).clamp(max=1)


@dataclass(frozen=True)
class ReleasedMeans(FeatureMeans):
    """Feature means, with rows in a ball of radius `clip`, and `updates` image updates for each release."""

    reduces: ClassVar[bool] = True

    clip: float = math.inf
    updates: int = 1

    def __call__(self, context: Context) -> Grads:
        """Loss per class of the block, and its gradient for every synthetic image."""
        network = cast("Network", context.surrogate)
        joint = share_a_pass(context)
        at = replace(context, step=context.step - context.step % self.updates)
        record = draw_siamese(at)
        if context.step == at.step or "release" not in context.state:
            batch = at.real_batch()
            with torch.no_grad():
                some = len(batch) > 0
                values = real_features(network, batch, at, record, joint) if some else batch.x.new_zeros(0, 1)
                values = values if some else values.new_zeros(0, network.embed_size)
                context.state["release"] = at.reduce(clipped(values, self.clip), batch.y, batch.weight)
        return synthetic_side(context, record, joint, self.loss_of(network, context.state["release"], context))

    def couples(self, context: Context) -> str:
        """See `core.split.ByClass`."""
        return "what is released of all classes is kept for several steps"

    def loss_of(self, network: Network, real: Tensor, context: Context) -> GroupLoss:
        """What a group of synthetic images costs, given what was released (C, d)."""

        def loss(x: Tensor, y: Tensor, group: Tensor) -> Tensor:
            means = class_means(clipped(network.embed(x).float(), self.clip), y, len(real))
            return squared_distance(real[group], means[group])

        return loss


@dataclass(frozen=True)
class ReleasedGradients:
    """The gradient of a match of means for each real image apart, and `context.reduce` of these.

    L_c = || mean_i h(x_i) - m_c ||^2 with m_c = mean h(S_c) has the gradient mean_i g_i, where
    g_i = -2 J^T (h(x_i) - m_c) and J is that of m_c for S_c. The loss that is told is the length of what was released.
    """

    reduces: ClassVar[bool] = True

    def __call__(self, context: Context) -> Grads:
        """Length per class of the block, and the released gradient of every synthetic image."""
        record, batch, synthetic = draw_siamese(context), context.real_batch(), context.synthetic
        assert synthetic is not None
        x, y = synthetic.x.detach(), synthetic.y.to(context.device)
        places = {c: (y == c).nonzero().flatten() for c in context.block.classes}
        order = torch.cat([(batch.y == c).nonzero().flatten() for c in places])
        rows = [self._of_class(x[here], batch.of(batch.y == c), c, context, record) for c, here in places.items()]
        batch = batch.of(order)
        released = context.reduce(torch.cat(rows), batch.y, batch.weight)
        grads = torch.zeros_like(x)
        for c, here in places.items():
            grads[here] = released[c].view(len(here), *x.shape[1:])
        return Grads(loss=torch.stack([released[c].square().sum() for c in places]), x=grads)

    def _of_class(self, x: Tensor, batch: Batch, c: int, context: Context, record: DsaRecord | None) -> Tensor:
        """Gradients (n, ipc * c * h * w), a row for each real image of a class."""
        network = cast("Network", context.surrogate)
        if not len(batch):
            return x.new_zeros(0, x.numel())
        leaf, joint = x.requires_grad_(), share_a_pass(context)
        mean = network.embed(augmented(leaf, batch.y.new_full((len(x),), c), context, record)).float().mean(0)
        with torch.no_grad():
            away = -2 * (real_features(network, batch, context, record, joint) - mean)
        found = [
            torch.autograd.grad(mean, leaf, part, is_grads_batched=True, retain_graph=True)[0].flatten(1)
            for part in away.split(SIDE_BY_SIDE)
        ]
        return torch.cat(found)
