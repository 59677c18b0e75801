"""The experts of FTD (Du et al., CVPR 2023, arXiv:2211.11004): flat trajectories by gap-guided sharpness-aware steps.

With g1 the gradient at w and g2 that at w + e, a step goes along (GSAM: Zhuang et al., ICLR 2022, arXiv:2203.08065)

    d = g2 - alpha (g1 - <g1, g2> g2 / ||g2||^2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from datastill.core.ranges import AnyRate, Count, Share, Weight, check_fields
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.surrogates.experts.policies.stepped import StepBatch, stepped_epoch
from datastill.training.hard import Schedule, cross_entropy, sgd

Form = Literal["adaptive", "plain"]

_TINY = 1e-12


@dataclass(frozen=True)
class Gsam:
    """SGD without momentum along GSAM's direction, on the cross-entropy of augmented images; two passes a step.

    With alpha = 0 and the plain form it is SAM; with rho = 0 it is SGD.

    Raises:
        InputError: a number out of range.
    """

    name: ClassVar[str] = "gsam"
    uses_statistics: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = True

    lr: AnyRate = 0.01  #: constant learning rate
    batch: Count = 256  #: images per step; the last, partial batch of an epoch is kept
    rho: Weight = 0.01  #: how far e goes, in the form's norm
    alpha: Weight = 1.0  #: of the part of g1 that is orthogonal to g2
    form: Form = "adaptive"  #: e: rho w^2 g1 / ||w g1||, or "plain", rho g1 / ||g1||
    weight_decay: Weight = 0.0  #: of every parameter
    part: Share = 1.0  #: of the images that an epoch passes over, drawn anew for each; below 1 snapshots are closer

    def __post_init__(self) -> None:
        check_fields(self, "{name} of experts")

    def epoch(self, network: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        """One pass over the data, or the epoch's part of them, in a new order."""
        schedule = Schedule(
            passes=1, lr=self.lr, momentum=0.0, weight_decay=self.weight_decay, batch=self.batch, augment=data.augment
        )
        optimizer = sgd(network.to(data.device).parameters(), schedule, self.lr)

        def step(batch: StepBatch) -> tuple[Tensor, Tensor]:
            return self._step(network, optimizer, batch)

        return stepped_epoch(network, data, schedule, epoch, self.part, step)

    def _step(self, network: nn.Module, optimizer: torch.optim.Optimizer, batch: StepBatch) -> tuple[Tensor, Tensor]:
        weights = [p for p in network.parameters() if p.requires_grad]
        loss, logits, first = _gradients(network, weights, batch)
        kept, statistics = [p.detach().clone() for p in weights], [b.clone() for b in network.buffers()]
        with torch.no_grad():
            for p, e in zip(weights, perturbation(kept, first, self.rho, self.form), strict=True):
                p.add_(e)
        _, _, second = _gradients(network, weights, batch)
        with torch.no_grad():
            for p, value in zip(weights, kept, strict=True):  # a copy: w + e - e differs from w
                p.copy_(value)
            for buffer, value in zip(network.buffers(), statistics, strict=True):
                buffer.copy_(value)
        for p, d in zip(weights, direction(first, second, self.alpha), strict=True):
            p.grad = d
        optimizer.step()
        return loss, logits


def perturbation(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, form: Form) -> list[Tensor]:
    """e for every parameter; norms are over all of them."""
    if form == "plain":
        scale = rho / (_inner(gradients, gradients).sqrt() + _TINY)
        return [scale * g for g in gradients]
    scaled = [w * g for w, g in zip(weights, gradients, strict=True)]
    scale = rho / (_inner(scaled, scaled).sqrt() + _TINY)
    return [scale * w * s for w, s in zip(weights, scaled, strict=True)]


def direction(first: Sequence[Tensor], second: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """d for every parameter: g2 less alpha times what of g1 is orthogonal to g2."""
    along = _inner(first, second) / (_inner(second, second) + _TINY**2)
    return [torch.lerp(b, b + along * b - a, alpha) for a, b in zip(first, second, strict=True)]


def _gradients(network: nn.Module, weights: Sequence[Tensor], batch: StepBatch) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss, logits and a gradient for every parameter; zeros for one that has no part in the loss."""
    logits = network(batch.images)
    loss = cross_entropy(logits, batch.target, batch.weight)
    found = torch.autograd.grad(loss, list(weights), materialize_grads=True)
    return loss.detach(), logits.detach(), list(found)


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()
