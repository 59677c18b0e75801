"""Cross-entropy of a teacher and its batch-norm statistics (Yin et al., NeurIPS 2023, arXiv:2306.13092).

    L = CE(f(A(x)), y) + r (M + lambda_var V) + l2 mean_i || x_i ||_2 + tv TV(x)
    M = sum_l m_l || mu_l - RM_l ||_2,  V = sum_l m_l || v_l - RV_l ||_2

mu_l and v_l are the mean and biased variance of each channel over the block as layer l is given it, RM_l and RV_l the
layer's running ones; A is one view of the whole block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.recovery_views import RecoveryViews
from datastill.core.context import Context
from datastill.engines.statistics import StatRecorder


class KeepsNetwork(Protocol):
    """Surrogates that have one network for all steps, such as `surrogates.pretrained`."""

    @property
    def network(self) -> nn.Module: ...


@dataclass(frozen=True)
class Recovery:
    """Images that a teacher takes for their class and whose statistics are those that it was trained on.

    Attributes:
        views: A.
        r_bn: r, or "auto": see `automatic_weight`.
        variance_weight: lambda_var.
        first_layer: m_1; the other layers have 1.
        power: of the norms, 1 as released or 2.
        l2, tv: weights of two terms on the pixels, which every published script sets to 0.
        statistics_of: match the statistics of this network and not of the step's, at a second forward pass.
    """

    views: RecoveryViews
    r_bn: float | Literal["auto"] = 0.01
    variance_weight: float = 1.0
    first_layer: float = 10.0
    power: int = 1
    l2: float = 0.0
    tv: float = 0.0
    statistics_of: KeepsNetwork | None = None

    def __call__(self, context: Context) -> Tensor:
        """The loss, a scalar; the distance of statistics, M + V, is left in `context.state`."""
        assert context.synthetic is not None
        assert isinstance(context.surrogate, nn.Module)
        x, y = context.synthetic.x, context.synthetic.y.to(context.device)
        record = self.views.draw(context.generator("views"), len(x), x.shape, context.progress)
        seen = self.views.apply(x, record)
        loss = self._classify_and_match(seen, y, context)
        if self.l2:
            loss = loss + self.l2 * torch.linalg.vector_norm(x.flatten(1), dim=1).mean()
        if self.tv:
            loss = loss + self.tv * total_variation(x)
        return loss

    def _classify_and_match(self, seen: Tensor, y: Tensor, context: Context) -> Tensor:
        network = context.surrogate
        assert isinstance(network, nn.Module)
        matched = network if self.statistics_of is None else self.statistics_of.network
        with StatRecorder.of(matched) as recorder:
            logits = network(seen)
            if matched is not network:
                matched(seen)
        classes = F.cross_entropy(logits.float(), y)
        means, variances = recorder.distance(self.first_layer, self.power)
        context.state["statistics"] = (means + variances).detach().reshape(1)
        weight = self._weight(context)
        if not weight:
            return classes
        return classes + weight * (means + self.variance_weight * variances)

    def _weight(self, context: Context) -> float:
        if self.r_bn != "auto":
            return float(self.r_bn)
        if "r_bn" not in context.state:
            network = context.surrogate
            assert isinstance(network, nn.Module)
            context.state["r_bn"] = torch.tensor([automatic_weight(network, context, self.first_layer, self.power)])
        return float(context.state["r_bn"])


#: How much more than the classes the statistics of noise weigh under `r_bn="auto"`.
BALANCE = 200.0


def automatic_weight(network: nn.Module, context: Context, first: float, power: int) -> float:
    """r = 200 log C / R(noise): before recovery, statistics weigh two hundred times what guessing the class costs.

    R grows with depth and width, and with how far a teacher's training batches were from plain images, so that one
    constant fits one network. R is that of as many images of noise as the block has, the same for all blocks and every
    start. The balance is ours: the middle of what works for a ResNet-20 and for a small ConvNet (docs/decoupled.md).
    """
    with torch.no_grad(), StatRecorder.of(network) as recorder:
        network(noise(context))
    means, variances = recorder.distance(first, power)
    return BALANCE * math.log(context.task.classes) / max(float(means + variances), 1e-12)


def noise(context: Context) -> Tensor:
    """As many images of noise as the block has, the same for all blocks."""
    drawn = torch.randn(len(context.block.index), *context.task.real.shape, generator=context.rng.generator("r_bn"))
    if context.task.real.space.kind == "raw":
        drawn = (drawn / 4 + 0.5).clamp(0, 1)
    return drawn.to(context.device)


def total_variation(x: Tensor) -> Tensor:
    """Sum of the L2 norms of horizontal, vertical and both diagonal differences of neighbors, over the batch."""
    differences = (
        x[..., :, :-1] - x[..., :, 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., :-1, :-1] - x[..., 1:, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(d) for d in differences]).sum()
