"""Clients send weights: FedAvg (McMahan et al., AISTATS 2017) and FedProx (Li et al., MLSys 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from datastill.apps.federated.strategy import (
    Checked,
    Client,
    Payload,
    Server,
    State,
    network_of,
    other_shapes,
    state_of,
)
from datastill.core.ranges import AnyRate, Count, Momentum, Weight
from datastill.core.rng import Rng
from datastill.training.hard import Schedule, train

if TYPE_CHECKING:
    from datastill.models.base import Network

#: How many images a client has, in its payload.
IMAGES = "images_count"


@dataclass(frozen=True, kw_only=True)
class FedAvg(Checked):
    """Clients train the network on their images and send its weights; the server takes their mean."""

    name: ClassVar[str] = "fedavg"

    local_passes: Count = 1  #: passes over a client's images in a round
    local_lr: AnyRate = 0.01  #: SGD learning rate of a client
    local_momentum: Momentum = 0.9  #: SGD momentum of a client
    local_batch: Count = 64  #: images per step of a client

    def send(self, client: Client, given: Payload) -> Payload:
        """The weights after local training, and how many images they were trained on."""
        network = network_of(client.factory, given, client.runtime.device)
        schedule = Schedule(
            passes=self.local_passes, lr=self.local_lr, momentum=self.local_momentum, weight_decay=0.0,
            batch=self.local_batch,
        )  # fmt: skip
        train(
            network, lambda index: client.real.batch(index).x, client.real.labels, schedule,
            Rng(client.seed), device=client.runtime.device, optimizer=self.optimizer(network),
        )  # fmt: skip
        return {**state_of(network), IMAGES: torch.tensor([len(client.real)])}

    def optimizer(self, network: Network) -> torch.optim.SGD:
        """Of a client."""
        return torch.optim.SGD(network.parameters(), lr=self.local_lr, momentum=self.local_momentum)

    def flaw(self, payload: Payload, state: State, shape: tuple[int, int, int], classes: int) -> str:
        """Weights of other shapes, or that are not finite."""
        found = other_shapes(payload, {**{name: tuple(value.shape) for name, value in state.items()}, IMAGES: (1,)})
        return found or ("" if int(payload[IMAGES]) > 0 else "it says that it has no images")

    def gather(self, server: Server, state: State, payloads: Mapping[int, Payload]) -> dict[str, Tensor]:
        """The mean of all weights and buffers, each client with its share of the images."""
        total = sum(int(payload[IMAGES]) for payload in payloads.values())
        made = {}
        for name, before in state.items():
            if not before.is_floating_point():  # a count of batches
                made[name] = next(iter(payloads.values()))[name].clone()
                continue
            mean = torch.zeros_like(before, dtype=torch.double)
            for payload in payloads.values():
                mean += payload[name].double() * (int(payload[IMAGES]) / total)
            made[name] = mean.to(before.dtype)
        return made


@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    """FedAvg whose clients pay for leaving the weights that they were given."""

    name: ClassVar[str] = "fedprox"

    mu: Weight = 0.01  #: weight of half of the squared distance to the weights of the round

    def optimizer(self, network: Network) -> torch.optim.SGD:
        """SGD with the gradient of mu / 2 * || w - w_r ||^2 added."""
        return _Proximal(network.parameters(), self.mu, lr=self.local_lr, momentum=self.local_momentum)


class _Proximal(torch.optim.SGD):
    def __init__(self, parameters: Iterable[Tensor], mu: float, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.mu = mu
        self.start = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the gradients have the proximal term in them afterwards."""
        for group, start in zip(self.param_groups, self.start, strict=True):
            for parameter, first in zip(group["params"], start, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - first, alpha=self.mu)
        return super().step(closure)
