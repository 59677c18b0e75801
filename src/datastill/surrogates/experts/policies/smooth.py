"""The experts of AST (Shen et al., arXiv:2310.10541): strong by momentum, smooth by a penalty and a gentle start.

    lambda_e CE(A(x)) + mu E[(||d sum_c f_c(x) / dx||_2 - K)^2]

lambda_e rises over the first epochs ("clipped" in the paper, where nothing is clipped); the penalty is on the images as
they are, and its gradient is one of second order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from datastill.core.ranges import Amount, AnyRate, Count, Momentum, Share, Weight, check_fields
from datastill.engines.hypergradient.convolution import second_order
from datastill.engines.weight_gradients import shares
from datastill.models import couples_samples
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.surrogates.experts.policies.stepped import StepBatch, stepped_epoch
from datastill.training.hard import Schedule, cross_entropy, sgd
from datastill.training.momentum import give_momentum, momentum_of

Norm = Literal["channel", "sample"]

#: What remains of the rate after a little more than half of the epochs, and of the loss in the first.
_DROP, _START = 0.6, 0.5
#: Pixels (height x width x images) that go through the penalty together on a CPU.
_PIXELS = 8 * 32 * 32


@dataclass(frozen=True)
class SmoothSgd:
    """SGD with momentum and decay on a ramped cross-entropy and a gradient penalty.

    After the epoch of index epochs // 2 + 1 the rate falls to 0.6 of itself and the momentum is forgotten. With
    penalty = 0 and ramp = 0 it is SGD with momentum alone. The loss that is told is the cross-entropy.

    Raises:
        InputError: a number out of range.
    """

    name: ClassVar[str] = "smooth"
    uses_statistics: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = True

    lr: AnyRate = 0.003  #: learning rate of the first half
    batch: Count = 256  #: images per step; the last, partial batch of an epoch is kept
    momentum: Momentum = 0.9
    weight_decay: Weight = 1e-3  #: of every parameter
    ramp: Amount = 10  #: epochs over which the cross-entropy's factor rises from 1/2 to 1; 0 is none
    penalty: Weight = 2.0  #: mu; 0 is none
    target: Weight = 1.0  #: K, what the norm is drawn to
    norm: Norm = "channel"  #: of the gradient at each pixel over channels, as released, or of the whole "sample"
    part: Share = 1.0  #: of the images that an epoch passes over, drawn anew for each; below 1 snapshots are closer

    def __post_init__(self) -> None:
        check_fields(self, "{name} of experts")

    def epoch(self, network: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        """One pass over the data, or the epoch's part of them, in a new order."""
        last = epoch.count // 2 + 1
        schedule = Schedule(
            passes=1,
            lr=self.lr * (_DROP if epoch.index > last else 1.0),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch=self.batch,
            augment=data.augment,
        )
        optimizer, factor = sgd(network.to(data.device).parameters(), schedule, schedule.lr), self.factor(epoch.index)
        if epoch.index != last + 1:
            give_momentum(network, optimizer, epoch.state)

        def step(batch: StepBatch) -> tuple[Tensor, Tensor]:
            optimizer.zero_grad(set_to_none=True)
            logits = network(batch.images)
            loss = cross_entropy(logits, batch.target, batch.weight)
            torch.autograd.backward(factor * loss)
            if self.penalty:
                self._penalize(network, batch)
            optimizer.step()
            return loss.detach(), logits.detach()

        loss = stepped_epoch(network, data, schedule, epoch, self.part, step)
        epoch.state.update({name: buffer.cpu().clone() for name, buffer in momentum_of(network, optimizer).items()})
        return loss

    def _penalize(self, network: nn.Module, batch: StepBatch) -> None:
        """Add the penalty's gradient to the parameters', by parts that stay in a cache where samples do not couple."""
        x = batch.plain()
        share = shares(batch.weight, x)
        weights = [p for p in network.parameters() if p.requires_grad]
        size = max(1, _PIXELS // (x.shape[-1] * x.shape[-2]))
        if x.device.type != "cpu" or couples_samples(network):
            size = len(x)
        for images, part in zip(x.split(size), share.split(size), strict=True):
            each = penalty(network, images, self.target, self.norm)
            torch.autograd.backward(self.penalty * (each @ part), inputs=weights)

    def factor(self, epoch: int) -> float:
        """lambda_e: 0.5, 0.55, ..., 0.95 over ten epochs, then 1."""
        return 1.0 if epoch >= self.ramp else _START + (1 - _START) * epoch / self.ramp


def penalty(network: nn.Module, x: Tensor, target: float, norm: Norm) -> Tensor:
    """(||d sum_c f_c(x) / dx|| - K)^2 for every image, (b,), with a graph; a mean over pixels for "channel"."""
    x = x.detach().requires_grad_()
    with second_order():
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    if norm == "sample":
        return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - target).square()
    return (torch.linalg.vector_norm(slope, dim=1) - target).square().flatten(1).mean(1)
