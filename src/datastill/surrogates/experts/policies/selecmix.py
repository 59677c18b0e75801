"""Experts that resist a bias: SelecMix (Hwang et al., NeurIPS 2022) at the constant SGD rate that trajectories want.

The images of a step are mixed with partners that contradict the bias, as an auxiliary encoder sees it; it learns beside
the expert, on the images as they are. The trajectory holds the expert's weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.core.ranges import AnyRate, Count, Probability, Rate, Share, Weight, check_fields
from datastill.core.rng import isolated
from datastill.models import Network, couples_samples
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.training.batches import parts
from datastill.training.debiased_steps import batches
from datastill.training.extractor import Encoder, small_backbone
from datastill.training.hard import LossWatch, Schedule, sgd
from datastill.training.selecmix import Auxiliary, move


@dataclass(frozen=True)
class SelecMixSgd:
    """Plain SGD on images that are mixed with partners which contradict the bias.

    The published trainer takes Adam; trajectories of plain SGD match better, so this one takes that (our choice).

    Raises:
        InputError: a number out of range.
    """

    name: ClassVar[str] = "selecmix"
    uses_statistics: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = False  # which images an expert sees is its choice

    lr: AnyRate = 0.01  #: constant learning rate of the expert
    batch: Count = 256  #: images per step
    part: Share = 1.0  #: of the images that an epoch passes over, drawn anew for each
    pool: Count = 1024  #: images among which partners are sought, in whole batches
    auxiliary_lr: AnyRate = 1e-3  #: Adam of the auxiliary encoder
    auxiliary_weight_decay: Weight = 1e-4
    auxiliary_epochs: Count = 1  #: epochs after which the encoder rests: the bias is learned first, and lost later
    tau: Rate = 0.2  #: temperature of its loss
    q: Probability = 0.7  #: how much that loss prefers easy pairs

    def __post_init__(self) -> None:
        check_fields(self, "{name} of selecmix")

    def epoch(self, network: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        """One pass over the data, or the epoch's part of them, in pools of mixed images."""
        auxiliary = self._auxiliary(network, epoch, data.device)
        optimizer = sgd(network.parameters(), Schedule(passes=1, momentum=0.0, weight_decay=0.0), self.lr)
        network.to(data.device).train()
        total, watch, seen = torch.zeros((), device=data.device), LossWatch("pool"), 0
        with isolated(epoch.rng.derive("dropout")):
            for index, images, y, number in self._pools(data, epoch):
                mixed, target = auxiliary.contradict(images, y, epoch.rng.generator("mix", number))
                for start, stop in parts(len(y), self.batch, couples_samples(network)):
                    part = torch.arange(start, stop)
                    logits = network(mixed[part])
                    loss = move(optimizer, F.cross_entropy(logits, target[part]))
                    if epoch.index < self.auxiliary_epochs:
                        auxiliary.learn(images[part], y[part])
                    total, seen = total + loss * len(part), seen + len(part)
                    epoch.on_batch(index[part], logits.detach())
                watch.add(total, steps=1)
        watch.finish()
        epoch.state.update({name: value.cpu() for name, value in auxiliary.state().items()})
        return float(total) / max(1, seen)

    def _pools(self, data: TrainingSet, epoch: Epoch) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Positions (n,), images, class positions (n,) and number of each pool of the epoch."""
        n = len(data.y)
        left = max(1, round(self.part * n))
        batch = min(self.batch, left)
        size = max(batch, self.pool // batch * batch)
        dealt = batches(data.x, data.y, size, data.augment, epoch.rng, data.device, -(-left // size))
        for number, (index, images, y) in enumerate(dealt):
            few = slice(0, left)
            left -= len(index[few])
            yield index[few], images[few], y[few], number

    def _auxiliary(self, network: nn.Module, epoch: Epoch, device: torch.device) -> Auxiliary:
        """The encoder as the last epoch left it; new in the first."""
        assert isinstance(network, Network)
        backbone = small_backbone(network.channels, network.classes, network.size)
        encoder = Encoder(backbone, epoch.rng.derive("auxiliary"), outputs=128).to(device)
        made = Auxiliary(
            encoder, lr=self.auxiliary_lr, weight_decay=self.auxiliary_weight_decay, tau=self.tau, q=self.q
        )
        if epoch.state:
            made.load(epoch.state)
        return made
