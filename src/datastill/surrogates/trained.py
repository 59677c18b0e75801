"""What surrogates that train networks share: a network kept over steps, its state, and frozen batch statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.core.context import Context
from datastill.core.precision import casting

if TYPE_CHECKING:
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory

#: Real images per class from which the statistics of batch norm are taken before they are frozen.
_STATISTICS_IMAGES = 16


class Trajectory(ABC):
    """One network at a time, matched `outer` times in a row and trained in between.

    Subclasses define `train(network, context)`, called between two matches on the same network.
    """

    def __init__(self, factory: NetworkFactory, outer: int) -> None:
        self.factory, self.outer = factory, outer
        self.network: Network | None = None
        self._stored: dict[str, Tensor] = {}

    def begin(self, context: Context) -> None:  # noqa: B027
        """Nothing to begin: the first draw makes a network."""

    def draw(self, context: Context) -> Network:
        """The network of this step: a new one at the start of each trajectory."""
        if self.begins(context):
            self.network = self.factory(context.seed("surrogate")).to(context.device)
            self.start(self.network, context)
        elif self.network is None:
            self.network = self.factory(0).to(context.device)
            self.network.load_state_dict({n: t.to(context.device) for n, t in self._stored.items()})
        freeze_batch_norm(self.network, context)
        return self.network

    def advance(self, context: Context) -> None:
        """Train the network, unless its trajectory ends here."""
        if (context.step + 1) % self.outer == 0 or context.step + 1 >= context.steps:
            return
        assert self.network is not None
        with casting(context.device, context.task.precision):
            self.train(self.network, context)

    def begins(self, context: Context) -> bool:
        """Whether a trajectory begins at this step."""
        return context.step % self.outer == 0

    def start(self, network: Network, context: Context) -> None:  # noqa: B027
        """A new trajectory begins."""

    @abstractmethod
    def train(self, network: Network, context: Context) -> None:
        """Move the network between two matches."""

    def state(self) -> dict[str, Tensor]:
        """The weights."""
        if self.network is None:
            return {}
        return {f"weight/{name}": value.detach().clone() for name, value in self.network.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.network = None
        self._stored = {n.removeprefix("weight/"): t for n, t in state.items() if n.startswith("weight/")}


def freeze_batch_norm(network: Network, context: Context) -> None:
    """Give batch norm the exact statistics of some real images of every class, and keep them for the match.

    The released code does the same with a momentum of 0.1 from (0, 1), which keeps a tenth of what was measured.
    """
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    network.train()
    if not layers:
        return
    batch = context.task.real.of_classes(context.block.classes, _STATISTICS_IMAGES, context.generator("batch-norm")).to(
        context.device
    )
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average: of one batch, that batch's statistics
    with torch.no_grad():
        network(batch.x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
