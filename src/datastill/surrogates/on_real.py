"""Networks that are trained on real images between image updates (IDC: Kim et al., ICML 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.rng import Rng
from datastill.surrogates.trained import Trajectory
from datastill.training.hard import Schedule, sgd, train
from datastill.training.momentum import PREFIX, give_momentum, momentum_of

if TYPE_CHECKING:
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory


class TrainedOnReal(Trajectory):
    """`outer` matches per network, with SGD on `images` real images between two of them.

    The optimizer lives as long as its network: momentum carries over from one stretch of training to the next.

    Args:
        factory: builds the networks.
        outer: image updates per network.
        images: real images per stretch, a new random sample each time, at most the whole set.
        schedule: learning rate, momentum, weight decay, batch and augmentation of the training.
        early: passes over the whole real set before the first match.
    """

    def __init__(self, factory: NetworkFactory, *, outer: int, images: int, schedule: Schedule, early: int = 0) -> None:
        super().__init__(factory, outer)
        self.images, self.schedule, self.early = images, schedule, early
        self.optimizer: torch.optim.SGD | None = None
        self._momentum: dict[str, Tensor] = {}

    def start(self, network: Network, context: Context) -> None:
        """A new optimizer; some passes over the real set if asked."""
        self.optimizer, self._momentum = None, {}
        for p in range(self.early):
            self._stretch(network, context, len(context.task.real), f"early {p}")

    def train(self, network: Network, context: Context) -> None:
        """On a new sample of real images."""
        self._stretch(network, context, self.images, "stretch")

    def chosen(self, context: Context, count: int, name: str) -> Tensor:
        """Positions of the real images of a stretch, in no order."""
        return torch.randperm(len(context.task.real), generator=context.generator("net-data", name))[:count]

    def _stretch(self, network: Network, context: Context, count: int, name: str) -> None:
        real, chosen = context.task.real, self.chosen(context, count, name)
        network.requires_grad_(True)
        if self.optimizer is None:
            self.optimizer = self._resumed(network)
        train(
            network,
            lambda index: real.batch(chosen[index]).x,
            real.labels[chosen],
            self.schedule,
            Rng(context.seed("net-training", name)),
            weight=None if real.weights is None else real.weights[chosen],
            on_batch=lambda index, logits: context.net_updated(network),
            optimizer=self.optimizer,
            compiled=context.task.compile,
            chunk=context.chunk,
        )

    def _resumed(self, network: Network) -> torch.optim.SGD:
        optimizer = sgd(network.parameters(), self.schedule, self.schedule.lr)
        give_momentum(network, optimizer, self._momentum)
        return optimizer

    def state(self) -> dict[str, Tensor]:
        """The weights, and the momentum of each."""
        kept = super().state()
        if self.network is not None and self.optimizer is not None:
            kept |= {name: buffer.clone() for name, buffer in momentum_of(self.network, self.optimizer).items()}
        return kept

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        super().load(state)
        self.optimizer = None
        self._momentum = {n: t for n, t in state.items() if n.startswith(PREFIX)}
