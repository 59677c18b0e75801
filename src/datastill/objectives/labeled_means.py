"""Class means of features, and how well the network's labels fit the synthetic images (IDM, Zhao et al., CVPR 2023).

L = sum_c || mean_{x in B_c} f(A_c(x)) - mean_{s in S_c} f(A_c(s)) ||^2 + w a mean_{s in S_c} CE(phi(A_c(s)), c)
with a the network's accuracy on the images that it trained on last, in percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

from datastill.core.context import Context, class_means
from datastill.objectives.feature_means import FeatureMeans, squared_distance
from datastill.objectives.sides import GroupLoss

if TYPE_CHECKING:
    from datastill.models.base import Network


@runtime_checkable
class KnowsAccuracy(Protocol):
    """Surrogates that know how well the network of this step classifies."""

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        ...


@dataclass(frozen=True)
class LabeledFeatureMeans(FeatureMeans):
    """`FeatureMeans` and a cross-entropy with the class labels, from one pass over the synthetic images.

    It weighs as much as the network is right, in percent: nothing where the surrogates know no accuracy.
    """

    ce_weight: float = 0.0  #: of the cross-entropy, per percent of accuracy

    def loss_of(self, network: Network, real: Tensor, context: Context) -> GroupLoss:
        """What a group of synthetic images costs, given the means (C, d) of real features."""
        surrogates = context.plan.surrogates
        accuracy = surrogates.accuracy if isinstance(surrogates, KnowsAccuracy) else 0.0
        weight = self.ce_weight * 100 * accuracy
        if weight == 0:
            return super().loss_of(network, real, context)

        def loss(x: Tensor, y: Tensor, group: Tensor) -> Tensor:
            found = network.taps(x, ("flat", "logits"))
            means = class_means(found["flat"].float(), y, len(real))
            each = F.cross_entropy(found["logits"].float(), y, reduction="none")
            entropy = class_means(each[:, None], y, len(real))[:, 0]
            return squared_distance(real[group], means[group]) + weight * entropy[group]

        return loss

    def note(self, losses: Tensor) -> str:
        """Nothing: networks that learn have larger features, and their labels weigh more, so the loss may well rise."""
        return ""
