"""Experts as methods that match class statistics train them: SGD with momentum, a falling rate, CutMix.

DANCE (Zhang et al., IJCAI 2024, arXiv:2406.01063) and those that kept its script: rate .01, momentum .9, decay 5e-4,
batches of 64, a fifth of the rate after 2/3 and after 5/6 of the epochs, CutMix for every second batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from datastill.core.ranges import AnyRate, Count, Momentum, Probability, Share, Weight, check_fields
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.surrogates.experts.policies.sgd import epoch_images
from datastill.training.hard import Schedule, sgd, train


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
        images, index = epoch_images(data, self.part, epoch)
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
        named = dict(network.named_parameters())
        for name, parameter in named.items():
            if (kept := epoch.state.get(f"momentum/{name}")) is not None:
                optimizer.state[parameter]["momentum_buffer"] = kept.to(parameter.device, copy=True)
        losses = train(
            network,
            images,
            data.y[index],
            schedule,
            epoch.rng,
            weight=None if data.weight is None else data.weight[index],
            on_batch=lambda rows, logits: epoch.on_batch(index[rows], logits),
            device=data.device,
            optimizer=optimizer,
        )
        for name, parameter in named.items():
            buffer = optimizer.state[parameter].get("momentum_buffer")
            if isinstance(buffer, torch.Tensor):
                epoch.state[f"momentum/{name}"] = buffer.detach().cpu().clone()
        return losses[0]

    def _rate(self, epoch: Epoch) -> float:
        passed = [3 * epoch.index >= 2 * epoch.count, 6 * epoch.index >= 5 * epoch.count]
        return self.lr * (0.2 ** sum(passed) if self.schedule == "steps" else 1.0)
