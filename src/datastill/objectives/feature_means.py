"""Distance between class means of features (Zhao and Bilen, Dataset Condensation with Distribution Matching).

L = sum_c || mean_{x in B_c} f(A_c(x)) - mean_{s in S_c} f(A_c(s)) ||^2, squared and summed over features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from datastill.core import compilation
from datastill.core.batch import Batch
from datastill.core.context import Context, class_means
from datastill.core.plan import Grads
from datastill.engines.features import features_of
from datastill.engines.weight_gradients import compilable
from datastill.objectives.siamese import augmented, draw_siamese
from datastill.objectives.sides import GroupLoss, coupled, share_a_pass, synthetic_side

if TYPE_CHECKING:
    from datastill.augment.dsa import DsaRecord
    from datastill.models.base import Network


def squared_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """|| real_c - synthetic_c ||^2 per class; both (C, d), the result (C,)."""
    return (real - synthetic).square().sum(dim=1)


@dataclass(frozen=True)
class FeatureMeans:
    """Class means of the input of the last linear layer, on one network for both sides.

    Where no layer couples samples, the real side runs in chunks without a graph and the synthetic side in
    groups of classes, each with its own short backward pass: the same numbers in a bounded memory. Of networks
    with batch statistics all classes share one forward pass per side. Compiled code, where the task asks
    for it, serves the real side.
    """

    reduces: ClassVar[bool] = True

    def __call__(self, context: Context) -> Grads:
        """Loss per class of the block, and its gradient for every synthetic image."""
        network = cast("Network", context.surrogate)
        joint = share_a_pass(context)
        record = draw_siamese(context)
        batch = context.real_batch()
        with torch.no_grad():
            features = real_features(network, batch, context, record, joint)
            real = context.reduce(features, batch.y, batch.weight)
        return synthetic_side(context, record, joint, self.loss_of(network, real, context))

    def couples(self, context: Context) -> str:
        """See `core.split.ByClass`."""
        return coupled(context)

    def loss_of(self, network: Network, real: Tensor, context: Context) -> GroupLoss:
        """What a group of synthetic images costs, given the means (C, d) of real features."""

        def loss(x: Tensor, y: Tensor, group: Tensor) -> Tensor:
            means = class_means(network.embed(x).float(), y, len(real))
            return squared_distance(real[group], means[group])

        return loss


def real_features(network: Network, batch: Batch, context: Context, record: DsaRecord | None, joint: bool) -> Tensor:
    """Features of the real batch, (n, d), without a graph."""
    compiled = context.task.compile and not joint and compilable(network) and len(batch) > 0
    size = len(batch) if joint else context.chunk
    if compiled:
        size = compilation.even_chunk(len(batch), size)
    parts = []
    for x, y in zip(batch.x.split(size), batch.y.split(size), strict=True):
        images = augmented(x, y, context, record)
        parts.append(features_of(network, images, size if compiled else 0))
    return torch.cat(parts)
