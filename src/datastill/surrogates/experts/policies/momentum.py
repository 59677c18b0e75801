"""Experts as methods that match class statistics train them: SGD with momentum, a falling rate, CutMix.

DANCE (Zhang et al., IJCAI 2024, arXiv:2406.01063) and those that kept its script: rate .01, momentum .9, decay 5e-4,
batches of 64, a fifth of the rate after 2/3 and after 5/6 of the epochs, CutMix for every second batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from datastill.core.ranges import AnyRate, Count, Momentum, Probability, Share, Weight, check_fields
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.surrogates.experts.policies.sgd import trained_epoch
from datastill.training.hard import Schedule, sgd
from datastill.training.momentum import give_momentum, momentum_of


@dataclass(frozen=True)
class MomentumSgd:
    """SGD with momentum on the cross-entropy of augmented images; the momentum goes on from epoch to epoch.

    Raises:
        InputError: a number out of range.
    """

    name: ClassVar[str] = "momentum"
    uses_statistics: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = True

    lr: AnyRate = 0.01  #: learning rate of the first epochs
    momentum: Momentum = 0.9
    weight_decay: Weight = 5e-4  #: of every parameter
    batch: Count = 64  #: images per step; the last, partial batch of an epoch is kept
    part: Share = 1.0  #: of the images that an epoch passes over, drawn anew for each; below 1 snapshots are closer
    schedule: Literal["steps", "constant"] = "steps"  #: "steps": a fifth of the rate after 2/3 and 5/6 of the epochs
    cutmix: Probability = 0.5  #: of a batch; none where nothing is augmented

    def __post_init__(self) -> None:
        check_fields(self, "{name} of experts")

    def epoch(self, network: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        """One pass over the data, or the epoch's part of them, in a new order."""
        schedule = Schedule(
            passes=1,
            lr=self._rate(epoch),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch=self.batch,
            augment=data.augment,
            cutmix=0.0 if data.augment == "none" else self.cutmix,
        )
        optimizer = sgd(network.to(data.device).parameters(), schedule, schedule.lr)
        give_momentum(network, optimizer, epoch.state)
        loss = trained_epoch(network, data, schedule, epoch, self.part, optimizer)
        epoch.state.update({name: buffer.cpu().clone() for name, buffer in momentum_of(network, optimizer).items()})
        return loss

    def _rate(self, epoch: Epoch) -> float:
        passed = [3 * epoch.index >= 2 * epoch.count, 6 * epoch.index >= 5 * epoch.count]
        return self.lr * (0.2 ** sum(passed) if self.schedule == "steps" else 1.0)
