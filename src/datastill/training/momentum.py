"""The momentum of a network's optimizer by the names of its parameters: for checkpoints, and to go on with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

#: How the names of momentum begin in a state.
PREFIX = "momentum/"


def momentum_of(network: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """`momentum/<name>` for every parameter that has some; not copied."""
    found = {}
    for name, parameter in network.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            found[f"{PREFIX}{name}"] = buffer.detach()
    return found


def give_momentum(network: nn.Module, optimizer: torch.optim.SGD, kept: Mapping[str, Tensor]) -> None:
    """The inverse of `momentum_of`: a new optimizer goes on with what is in `kept`, of which it has copies."""
    for name, parameter in network.named_parameters():
        if (buffer := kept.get(f"{PREFIX}{name}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device, copy=True)
