"""Networks that train on the synthetic set for as long as they learn (CAFE: Wang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.precision import casting
from datastill.surrogates.on_synthetic import TrainedOnSynthetic
from datastill.training.hard import predict

if TYPE_CHECKING:
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory


def at_rest(accuracies: Sequence[float], window: int, span: float) -> bool:
    """Whether the last `window` accuracies are there and span less than `span`: a network that learns no more."""
    last = accuracies[-window:]
    return len(last) == window and max(last) - min(last) < span


def on_the_move(accuracies: Sequence[float], window: int, span: float) -> bool:
    """Whether the last `window` accuracies, or as many as there are, span more than `span`: a network that changed."""
    last = accuracies[-window:]
    return bool(last) and max(last) - min(last) > span


class AdaptivelyTrained(TrainedOnSynthetic):
    """Between two matches a network trains on the synthetic set until its accuracy moved; at rest, it is given up.

    Accuracies are those on real images of the training set, a new sample each time. After each match one is added to
    the network's list; once the last `WINDOW` of them span less than `REST`, the next step begins with a new network.
    Else the network trains, pass by pass, until the last accuracies since the match span more than `MOVE`.

    Args:
        factory: builds the networks.
        cap: most passes over the synthetic set between two matches; the released loop may never end.
        query: real images per class of which the accuracy is taken.
        lr: learning rate of the network, plain SGD.
        augment: DSA strategy of the training, or "none".
    """

    WINDOW: ClassVar[int] = 10
    REST: ClassVar[float] = 0.04
    MOVE: ClassVar[float] = 0.03

    def __init__(self, factory: NetworkFactory, *, cap: int, query: int, lr: float = 0.01, augment: str = "none"):
        super().__init__(factory, outer=1, epochs=1, lr=lr, augment=augment)
        self.cap, self.query = cap, query
        self.accuracies: list[float] = []  #: after the matches on this network
        self._over = True

    def begin(self, context: Context) -> None:
        """The first step begins with a new network."""
        self._over = True

    def begins(self, context: Context) -> bool:
        """At the first step, and where the network before was at rest."""
        return self._over

    def draw(self, context: Context) -> Network:
        """The network of this step; its weights take no gradients.

        Batch norm takes the statistics of each side, as in DM: means of layers under frozen ones are not bounded, and
        the pixels run away.
        """
        return super().draw(context).requires_grad_(False).train()

    def start(self, network: Network, context: Context) -> None:
        """A new network, of which nothing is known."""
        self._over, self.accuracies = False, []

    def advance(self, context: Context) -> None:
        """Give the network up, or train it, unless this was the last step."""
        if context.step + 1 >= context.steps:
            return
        assert self.network is not None
        with casting(context.device, context.task.precision):
            self.accuracies = [*self.accuracies, self._accuracy(self.network, context, 0)][-self.WINDOW :]
            self._over = at_rest(self.accuracies, self.WINDOW, self.REST)
            if not self._over:
                self._train_until_it_moves(self.network, context)

    def _train_until_it_moves(self, network: Network, context: Context) -> None:
        found = self.accuracies[-1:]
        for epoch in range(1, self.cap + 1):
            self.train(network, context, epoch)
            if epoch == self.cap:
                return
            found.append(self._accuracy(network, context, epoch))
            if on_the_move(found, self.WINDOW, self.MOVE):
                return

    def _accuracy(self, network: Network, context: Context, epoch: int) -> float:
        """Of the network on a sample of real images, in [0, 1]."""
        generator = context.generator("query", epoch)
        batch = context.task.real.of_classes(context.block.classes, self.query, generator)
        right = predict(network, batch.x, device=context.device, compiled=context.task.compile).argmax(1).cpu()
        return float((right == batch.y).double().mean())

    def state(self) -> dict[str, Tensor]:
        """The weights, and what is known of the network."""
        known = {"accuracies": torch.tensor(self.accuracies, dtype=torch.float64), "over": torch.tensor(self._over)}
        return {**super().state(), **known}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        super().load(state)
        self.accuracies, self._over = state["accuracies"].tolist(), bool(state["over"])
