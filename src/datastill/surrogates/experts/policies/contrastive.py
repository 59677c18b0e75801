"""Experts of two towers on pairs of images and sentences: plain SGD at a constant rate for each tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from datastill.core.ranges import AnyRate, Count, RateOrAuto, Share, check_fields
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.surrogates.experts.policies.stepped import StepBatch, stepped_epoch
from datastill.training.contrastive import duplicates, loss_of, similarities, towers_sgd
from datastill.training.hard import Schedule

if TYPE_CHECKING:
    from datastill.models.towers import Towers


@dataclass(frozen=True)
class ContrastiveSgd:
    """SGD without momentum or decay on the contrastive loss, as published for vision-language (arXiv:2308.07545).

    Raises:
        InputError: a number out of range.
    """

    name: ClassVar[str] = "contrastive"
    uses_statistics: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = False

    lr: AnyRate = 0.1  #: constant learning rate of the image tower
    lr_text: RateOrAuto = 0.0  #: of the text tower; 0 takes that of the image tower
    batch: Count = 128  #: pairs per step; the last, partial batch of an epoch is kept
    part: Share = 1.0  #: of the pairs that an epoch passes over, drawn anew for each; below 1 snapshots are closer

    def __post_init__(self) -> None:
        check_fields(self, "{name} of experts")

    def epoch(self, network: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        """One pass over the pairs, or the epoch's part of them, in a new order."""
        assert data.same is not None
        schedule = Schedule(
            passes=1, lr=self.lr, momentum=0.0, weight_decay=0.0, batch=self.batch, augment=data.augment
        )
        towers, same = cast("Towers", network.to(data.device)), data.same.to(data.device)
        optimizer = towers_sgd(network, schedule, self.lr_text or self.lr)

        def step(batch: StepBatch) -> tuple[Tensor, Tensor]:
            optimizer.zero_grad(set_to_none=True)
            texts = towers.sentences(batch.target)
            s = similarities(towers(batch.images), texts)
            loss = loss_of(s, duplicates(texts, same[batch.index.to(same.device)]))
            torch.autograd.backward(loss)
            optimizer.step()
            return loss.detach(), s.detach()

        return stepped_epoch(network, data, schedule, epoch, self.part, step)
