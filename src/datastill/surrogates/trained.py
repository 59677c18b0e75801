"""What surrogates that train networks share: a network kept over steps, its state, and frozen batch statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from datastill.core.context import Context
from datastill.core.precision import casting
from datastill.training.frozen_norm import freeze_batch_norm

if TYPE_CHECKING:
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory


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
