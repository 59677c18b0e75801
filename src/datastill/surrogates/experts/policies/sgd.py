"""The experts of MTT (Cazenavette et al., CVPR 2022, arXiv:2203.11932): plain SGD at a constant learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from datastill.engines.training import Schedule, train
from datastill.surrogates.experts.policies import Epoch, TrainingSet


@dataclass(frozen=True)
class Sgd:
    """SGD without momentum on the cross-entropy of augmented images.

    It stays below what the network can reach, about 78 % on CIFAR-10 where momentum and decay reach 85 %. That is as
    published: trajectories of plain momentum match worse (AST: Shen et al., arXiv:2310.10541).

    Raises:
        InputError: a number out of range.
    """

    name: ClassVar[str] = "sgd"

    lr: float = 0.01  #: constant learning rate
    batch: int = 256  #: images per step; the last, partial batch of an epoch is kept
    weight_decay: float = 0.0  #: of every parameter

    def __post_init__(self) -> None:
        self._schedule("none")

    def epoch(self, network: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        """One pass over the data in a new order."""
        losses = train(
            network,
            data.x,
            data.y,
            self._schedule(data.augment),
            epoch.rng,
            weight=data.weight,
            on_batch=epoch.on_batch,
            device=data.device,
        )
        return losses[0]

    def _schedule(self, augment: str) -> Schedule:
        return Schedule(
            passes=1, lr=self.lr, momentum=0.0, weight_decay=self.weight_decay, batch=self.batch, augment=augment
        )
