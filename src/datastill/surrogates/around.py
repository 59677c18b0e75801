"""Networks around given weights, in a ball: where a loss landscape is matched (FedDM, CVPR 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.models.base import Network

if TYPE_CHECKING:
    from datastill.models.factory import NetworkFactory


@dataclass
class Around:
    """w = w_r + a Gaussian of scale radius / sqrt(dim), brought back to the ball of `radius` where it leaves it.

    Attributes:
        weights: w_r, the state of a network by name; buffers stay as they are.
        radius: 0 gives w_r itself.
        logits: whether `embed` of the network has the logits beside the features.
        hold: steps in a row with one network.
    """

    draws: ClassVar[str] = "network"

    factory: NetworkFactory
    weights: Mapping[str, Tensor]
    radius: float = 5.0
    logits: bool = True
    hold: int = 1
    _last: tuple[int, Network] | None = field(default=None, repr=False)

    def begin(self, context: Context) -> None:
        """No network of a block before."""
        self._last = None

    def draw(self, context: Context) -> Network:
        """The network of this step."""
        step = context.step - context.step % self.hold
        if self._last is None or self._last[0] != step:
            self._last = step, self._network(replace(context, step=step))
        return self._last[1]

    def _network(self, context: Context) -> Network:
        network = self.factory(0)
        network.load_state_dict(dict(self.weights))
        moved = list(network.parameters())
        generator = context.generator("around")
        drawn = [torch.randn(p.shape, generator=generator) for p in moved]
        length = math.sqrt(sum(float(d.double().square().sum()) for d in drawn))
        scale = self.radius / math.sqrt(sum(d.numel() for d in drawn))
        scale = min(scale, self.radius / length if length else scale)
        if self.radius:
            with torch.no_grad():
                for parameter, way in zip(moved, drawn, strict=True):
                    parameter.add_(way, alpha=scale)
        network = network.to(context.device).requires_grad_(False).train()
        return WithLogits(network) if self.logits else network

    def advance(self, context: Context) -> None:
        """The next step draws its own."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to remember: a network follows from its step."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to remember."""
        self._last = None


class WithLogits(Network):
    """A network whose features have its logits beside them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.channels, self.classes, self.size = network.channels, network.classes, network.size
        self.embed_size = network.embed_size + network.classes

    def embed(self, x: Tensor) -> Tensor:
        """Features and logits, (n, d + C)."""
        features = self.network.embed(x)
        return torch.cat([features, self.network.classify(features)], dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """The logits among them."""
        return features[:, -self.classes :]

    def tap_names(self) -> tuple[str, ...]:
        """Those of the network."""
        return self.network.tap_names()

    def _taps(self, x: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
        return {
            **self.network.taps(x, sorted(names - {"flat"})),
            **({"flat": self.embed(x)} if "flat" in names else {}),
        }
