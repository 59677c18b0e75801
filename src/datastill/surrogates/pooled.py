"""A network of a pool: made when it is first needed, and kept in a checkpoint once it was trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.training.feature_network import load_weights

if TYPE_CHECKING:
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory


class Pooled:
    """What pools have in common of their networks; a subclass has an optimizer and names its state.

    Args:
        trainings: how often it was trained.
    """

    def __init__(self, trainings: int) -> None:
        self.trainings = trainings
        self.stored: dict[str, Tensor] = {}  #: its state in a checkpoint, until it is needed
        self.network: Network | None = None

    @property
    def part(self) -> str:
        """A name of its state until another training."""
        raise NotImplementedError

    def moments(self, network: Network) -> dict[str, Tensor] | None:
        """State of its optimizer; None where there is none."""
        raise NotImplementedError

    def made(self, factory: NetworkFactory, seed: int, device: torch.device) -> Network:
        """The network, with the weights that it had."""
        if self.network is None:
            self.network = factory(seed).to(device)
            if self.stored:
                load_weights(self.network, self.stored)
        return self.network

    def state(self) -> dict[str, Tensor]:
        """Weights and moments, or nothing where it was never trained."""
        moments = None if self.network is None else self.moments(self.network)
        if self.network is None or moments is None:
            return self.stored
        weights = {f"weight/{name}": value.detach() for name, value in self.network.state_dict().items()}
        return {**weights, **moments}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Its part of what `states` gave, until it is needed."""
        prefix = f"{self.part}/"
        self.stored = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def states(members: Iterable[Pooled]) -> dict[str, Tensor]:
    """Weights and moments of who was trained, by part; nothing is copied."""
    return {f"{member.part}/{name}": value for member in members for name, value in member.state().items()}


def parts(members: Iterable[Pooled]) -> list[str]:
    """One for each network that was trained."""
    return [member.part for member in members if member.trainings]
