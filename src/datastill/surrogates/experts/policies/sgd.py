"""The experts of MTT (Cazenavette et al., CVPR 2022, arXiv:2203.11932): plain SGD at a constant learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from datastill.core.ranges import AnyRate, Count, Share, Weight, check_fields
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.training.hard import Images, Schedule, train


@dataclass(frozen=True)
class Sgd:
    """SGD without momentum on the cross-entropy of augmented images.

    It stays below what the network can reach, about 78 % on CIFAR-10 where momentum and decay reach 85 %. That is as
    published: trajectories of plain momentum match worse (AST: Shen et al., arXiv:2310.10541).

    Raises:
        InputError: a number out of range.
    """

    name: ClassVar[str] = "sgd"
    uses_statistics: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = True

    lr: AnyRate = 0.01  #: constant learning rate
    batch: Count = 256  #: images per step; the last, partial batch of an epoch is kept
    weight_decay: Weight = 0.0  #: of every parameter
    part: Share = 1.0  #: of the images that an epoch passes over, drawn anew for each; below 1 snapshots are closer

    def __post_init__(self) -> None:
        check_fields(self, "{name} of experts")

    def epoch(self, network: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        """One pass over the data, or the epoch's part of them, in a new order."""
        return trained_epoch(network, data, self._schedule(data.augment), epoch, self.part)

    def _schedule(self, augment: str) -> Schedule:
        return Schedule(
            passes=1, lr=self.lr, momentum=0.0, weight_decay=self.weight_decay, batch=self.batch, augment=augment
        )


def trained_epoch(
    network: nn.Module,
    data: TrainingSet,
    schedule: Schedule,
    epoch: Epoch,
    part: float,
    optimizer: torch.optim.SGD | None = None,
) -> float:
    """Train a network in place for an epoch on a part of the images, drawn anew for each; its mean loss.

    Args:
        network: to train.
        data: all images.
        schedule: of one pass.
        epoch: which, with its generators.
        part: of the images, in (0, 1].
        optimizer: goes on with its momentum; None is a new one.
    """
    index, x = images_of(data, epoch, part)
    losses = train(
        network,
        x,
        data.y[index],
        schedule,
        epoch.rng,
        weight=None if data.weight is None else data.weight[index],
        on_batch=lambda rows, logits: epoch.on_batch(index[rows], logits),
        device=data.device,
        optimizer=optimizer,
        compiled=data.compiled,
    )
    return losses[0]


def images_of(data: TrainingSet, epoch: Epoch, part: float) -> tuple[Tensor, Images]:
    """Positions (m,) of the images that an epoch passes over, a part of all that is drawn anew, and the images."""
    n = len(data.y)
    if part == 1:
        return torch.arange(n), data.x
    index = torch.randperm(n, generator=epoch.rng.generator("part"))[: max(1, round(part * n))]
    return index, data.x[index.to(data.x.device)] if isinstance(data.x, Tensor) else _rows(data.x, index)


def _rows(images: Callable[[Tensor], Tensor], index: Tensor) -> Images:
    return lambda rows: images(index[rows])
