"""A new random network every step, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from datastill.core.context import Context
from datastill.training.frozen_norm import freeze_batch_norm

if TYPE_CHECKING:
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory


@dataclass(frozen=True)
class Fresh:
    """Networks at random initialization, in train mode, without parameter gradients.

    Where they are `frozen`, batch norm has the statistics of real images for both sides, see `freeze_batch_norm`; else
    each pass has those of its own images.
    """

    draws: ClassVar[str] = "network"

    factory: NetworkFactory
    frozen: bool = False

    def begin(self, context: Context) -> None:
        """Nothing to begin."""

    def draw(self, context: Context) -> Network:
        """The network of this step."""
        network = self.factory(context.seed("surrogate")).to(context.device)
        network.requires_grad_(False).train()
        if self.frozen:
            freeze_batch_norm(network, context)
        return network

    def advance(self, context: Context) -> None:
        """Nothing to advance: the next step draws a new one."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to remember."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to remember."""
