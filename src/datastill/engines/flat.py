"""A network as a function of one flat vector of weights, theta (P,), as trajectory matching needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError
from datastill.models.base import functional


class FlatModel:
    """`model(theta, x)` is the network's output at the weights theta; the network's own weights are left alone.

    The order is that of `named_parameters()`: tied weights appear once, parameters that do not require a gradient
    are held where they are, unless none does (a template), when all of them are taken. Buffers are the network's;
    what a layer writes to them, running statistics, is thrown away.

    Args:
        network: the architecture, in the mode it is to run in, on the device of theta.

    Attributes:
        names, shapes, numels: of the parameters in theta, in order.
        size: P, the number of weights.

    Raises:
        InputError: the network has no weights, or weights of several types.
    """

    def __init__(self, network: nn.Module) -> None:
        every = dict(network.named_parameters())
        taken = {name: p for name, p in every.items() if p.requires_grad} or every
        types = sorted({str(p.dtype) for p in taken.values()})
        if len(types) != 1:
            found = " and ".join(types) if types else "none"
            raise InputError(f"A flat vector of weights needs a network with weights of one type; here it is {found}.")
        self.network = network
        self.names = tuple(taken)
        self.shapes = tuple(p.shape for p in taken.values())
        self.numels = tuple(p.numel() for p in taken.values())
        self.size = sum(self.numels)

    def flatten(self, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """The flat vector (P,) of named weights, a copy; None takes the network's own.

        Raises:
            InputError: a name is missing or a shape differs.
        """
        if state is None:
            state = dict(self.network.named_parameters())
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in state:
                raise InputError(f"The weights lack {name!r}, which the network has.")
            if state[name].shape != shape:
                found = tuple(state[name].shape)
                raise InputError(f"The weights {name!r} have shape {found}, the network's {tuple(shape)}.")
        return torch.cat([state[name].detach().flatten() for name in self.names])

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Named views of theta (P,), through which gradients flow.

        Raises:
            InputError: theta has another length.
        """
        if theta.shape != (self.size,):
            raise InputError(f"The network has {self.size} weights, the flat vector is {tuple(theta.shape)}.")
        parts = theta.split(self.numels)
        return {name: part.view(shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}

    def __call__(self, theta: Tensor, x: Tensor, method: str = "forward") -> Tensor:
        """Logits (n, C) of images x (n, c, h, w) at the weights theta (P,), or what another method of it gives."""
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        logits: Tensor = functional(self.network, {**self.split(theta), **buffers}, x, method=method)
        return logits

    def describe(self) -> dict[str, Any]:
        """What identifies the layout of theta, JSON-able."""
        offsets = [sum(self.numels[:i]) for i in range(len(self.numels))]
        return {
            "names": list(self.names),
            "shapes": [list(shape) for shape in self.shapes],
            "offsets": offsets,
            "size": self.size,
        }
